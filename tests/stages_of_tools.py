"Stages and a run for tests/test_tools.py; workers import them by name."
from pathlib import Path

from mathrepro import arms, tools
from mathrepro.records import Problem, read_rows, write_table
from mathrepro.runs import Run
from mathrepro.world.programs import tool_solution

STEPS = {"steps": [.4, .35, .25]}
ENGINE = {"engine": "transformers", "device": "cpu"}

def tool_rows(ctx, problems: Path):
    "Training rows whose solutions are programs with their true outputs."
    rows = read_rows(problems / "problems.parquet", Problem)
    write_table(ctx.out / "rows.parquet", [arms.TrainRow(r.id, r.problem, tool_solution(r), "gold") for r in rows], arms.TrainRow)

def student(home, n=300, epochs=6):
    "(run, train stages): a small model of the world taught to use tools, and its twin taught to calculate in words."
    run = Run("student", workers=2, home=home, progress="quiet")
    base, data = run.stage("base", arms.base_model, model="world:s"), run.stage("data", arms.load_problems, dataset="world", split="train", n=n, seed=0, options=STEPS)
    sft = dict(epochs=epochs, batch_size=16, learning_rate=2e-3, device="cpu")
    fit = lambda name, rows, template: run.stage(f"train/{name}", arms.train, base=base, rows=rows, sft=sft, template=template)
    return run, dict(tools=fit("tools", run.stage("rows/tools", tool_rows, problems=data), tools.TOOL_TEMPLATES["plain"]), words=fit("words", run.stage("rows/words", arms.gold_rows, problems=data), "plain"))

def solving(home, model, n=3, problems=40, workers=1, **how):
    "(run, solve stage): sampled answers with tools of the model in a folder, in small shards."
    run = Run("tools", workers=workers, home=home, progress="quiet")
    m, p = run.stage("model", arms.base_model, model=str(model)), run.stage("problems", arms.load_problems, dataset="world", split="test", n=problems, seed=0, options=STEPS)
    settings = dict(engine=ENGINE, template="plain", n=n, temperature=1.0, max_new_tokens=96, seed=5, shard=24) | how
    return run, run.stage("solve", tools.solve_with_tools, model=m, problems=p, **settings)
