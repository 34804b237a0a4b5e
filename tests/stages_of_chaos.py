"Stages for tests/chaos.py; workers import them by name."
from pathlib import Path
from mathrepro.engines.base import load_engine

def asked(ctx, url: str, n: int, size: int = 10, max_wait: float = 20.0):
    "Questions to a server, sharded; the replies of an unfinished shard are kept in the engine's journal."
    engine = load_engine(dict(engine="endpoint", base_url=url, model="toy", api="completions", concurrency=4, timeout=1.0, max_wait=max_wait, journal=str(ctx.scratch / "replies.jsonl")))
    try:
        for i, lo, hi, path in ctx.shards(n, size):
            done = engine.generate([f"{k} + {k} =" for k in range(lo, hi)], max_new_tokens=8)
            ctx.count(tokens_in=sum(c.prompt_tokens for c in done), tokens_out=sum(c.new_tokens for c in done))
            ctx.commit(path, [{"item": lo + c.prompt_index, "text": c.text, "finish": c.finish} for c in done])
    finally: engine.close()

def asking(home, engine: dict, n: int = 48, size: int = 12):
    "A run with the first stages of MathScale: problems of the world, and the concepts that a server names for them; whether it can be read does not matter here."
    from mathrepro import arms, extraction
    from mathrepro.runs import Run
    run = Run("asking", workers=0, home=home, progress="quiet")
    problems = run.stage("problems", arms.load_problems, dataset="world", split="train", n=n, seed=1)
    return run, run.stage("concepts", extraction.extract, problems=problems, engine=engine, max_new_tokens=32, min_yield=0.0, shard=size)

def solved(ctx, problems: Path, engine: dict, size: int):
    "As `arms.solve`, but the model that answers is behind a server."
    from mathrepro.arms import answer_shard
    from mathrepro.evaluate import score_samples
    from mathrepro.records import Problem, Score, read_rows, write_table
    rows, samples = read_rows(problems / "problems.parquet", Problem), []
    llm = load_engine({**engine, "journal": str(ctx.scratch / "replies.jsonl")})
    try:
        for _, lo, hi, path in ctx.shards(len(rows), size, "samples"):
            ctx.commit(path, answer_shard(ctx, llm, rows[lo:hi], "plain", dict(n=1, temperature=0.0, max_new_tokens=64, seed=0), engine["model"]))
    finally: llm.close()
    from mathrepro.arms import read_samples
    write_table(ctx.out / "scores.parquet", score_samples(read_samples(ctx.out), rows, "hash"), Score)

def solving(home, engine: dict, n: int = 64, size: int = 16):
    "A run that lets a served model solve problems of the world."
    from mathrepro import arms
    from mathrepro.runs import Run
    run = Run("asking", workers=0, home=home, progress="quiet")
    problems = run.stage("problems", arms.load_problems, dataset="world", split="test", n=n, seed=1)
    return run, run.stage("solved", solved, problems=problems, engine=engine, size=size)
