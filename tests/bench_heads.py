"""Reward and difficulty heads on the candidates of a small fine-tuned model of the world, each beside its baselines, and best-of-k beside the vote.
    python tests/bench_heads.py [home folder]        two to four minutes of one core; prints tables and seconds per stage"""
import json, sys, tempfile

from mathrepro import arms, heads, select
from mathrepro.heads import HeadRow
from mathrepro.records import Problem, read_rows
from mathrepro.runs import Run

WORLD = dict(steps=[0.4, 0.35, 0.25])
HEAD = dict(epochs=2, learning_rate=1e-3)

def stages(run, base="world:m", sft=400, train=600, test=300, n=8):
    "The stages by name: fine-tuned model, candidates for new questions, heads, scores, choice."
    s = dict(base=run.stage("base", arms.base_model, model=base))
    for seed, (name, split, rows) in enumerate((("sft", "train", sft), ("train", "train", train), ("test", "test", test))):
        s[name] = run.stage(f"problems/{name}", arms.load_problems, dataset="world", split=split, options=WORLD, n=rows, seed=seed)
    s["model"] = run.stage("model", arms.train, base=s["base"], rows=run.stage("rows", arms.gold_rows, problems=s["sft"]), sft=dict(epochs=3, batch_size=8, learning_rate=1e-3), template="plain")
    for part in ("train", "test"):
        s[f"samples/{part}"] = run.stage(f"samples/{part}", arms.solve, model=s["model"], problems=s[part], engine=dict(engine="transformers"), template="plain", n=n, temperature=0.7, top_p=0.95, max_new_tokens=110)
        s[f"answers/{part}"] = run.stage(f"answers/{part}", heads.reward_rows, samples=s[f"samples/{part}"])
        s[f"rates/{part}"] = run.stage(f"rates/{part}", heads.difficulty_rows, problems=s[part], samples=s[f"samples/{part}"])
    s["reward"] = run.stage("reward", heads.train_head, base=s["model"], rows=s["answers/train"], settings=HEAD)
    s["rewards"] = run.stage("rewards", heads.score, head=s["reward"], rows=s["samples/test"])
    s["difficulty"] = run.stage("difficulty", heads.train_head, base=s["base"], rows=s["rates/train"], kind="difficulty", settings=dict(HEAD, epochs=4))
    s["rated"] = run.stage("rated", heads.score, head=s["difficulty"], rows=s["test"])
    s["choice"] = run.stage("choice", select.choose, problems=s["test"], candidates=s["samples/test"], scores=s["rewards"])
    return s

def compared(s, kind, **more):
    "The head of a kind beside its baselines on the test questions."
    labels, scored, measures = ("answers", "rewards", ("auc", "auc within questions")) if kind == "reward" else ("rates", "rated", ("spearman",))
    train, test = (read_rows(s[f"{labels}/{p}"].file("labelled.parquet"), HeadRow) for p in ("train", "test"))
    by = {(x.problem_id, x.index): x.score for x in heads.read_scores(s[scored].path)}
    found = {"head": [by[r.problem_id, r.index] for r in test], "length": heads.length_scores(train, test), "tf-idf ridge": heads.ridge_scores(train, test)}
    if kind == "difficulty": found["steps (truth)"] = [json.loads(p.meta)["steps"] for p in read_rows(s["test"].file("problems.parquet"), Problem)]
    return heads.compare_scores([r.problem_id for r in test], [r.label for r in test], found, measures=measures, **more)

if __name__ == "__main__":
    run = Run("bench-heads", workers=0, home=sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(), progress="quiet")
    s = stages(run); run.compute()
    for kind in ("reward", "difficulty"): print(compared(s, kind).round(3).to_string(index=False))
    a = select.candidate_arrays(s["choice"].path)
    print(select.selection_table(a.correct, a.answers, a.scores, ks=(1, 2, 4, 8)).round(3).to_string(index=False))
    print({r["name"]: round(r["wall_s"], 1) for r in run.ledger()})
