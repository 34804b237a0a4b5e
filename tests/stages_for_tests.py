"Stage functions and a pipeline for tests/test_runs.py; workers import them by name."
import ctypes, os, random, signal, time
from pathlib import Path

from mathrepro.config import UserError

def draw(ctx, n: int, seed: int, size: int = 50, pause: float = 0.0):
    "Sharded: each row depends on its own number only."
    for i, lo, hi, path in ctx.shards(n, size):
        rows = []
        for k in ctx.progress(range(lo, hi), desc="drawing"):
            rows.append({"item": k, "x": random.Random(f"{seed}/{k}").random()})
            time.sleep(pause)
        ctx.count(tokens_out=len(rows), flops=2.0 * len(rows))
        ctx.commit(path, rows)

def several(ctx, draws: list, pause: float = 0.0):
    "Not sharded, several files written in small pieces: a kill leaves them half-written."
    for j, d in enumerate(draws):
        with open(ctx.out / f"names-{j}.txt", "w") as f:
            for p in sorted(d.glob("*.parquet")):
                f.write(f"{j} {p.name} {p.stat().st_size}\n"); f.flush(); time.sleep(pause)
    (ctx.out / "deep").mkdir(); (ctx.out / "deep" / "noise.txt").write_text(f"{random.random()}")   # the global generator, unseeded

def total(ctx, several: Path, draws: dict):
    import pandas as pd
    x = pd.concat([pd.read_parquet(p).assign(name=n) for n, d in draws.items() for p in sorted(d.glob("shard-*.parquet"))])
    ctx.commit("rows.parquet", x)
    ctx.commit("total.json", {"sum": x.x.sum(), "names": sorted(set(x.name)), "files": sorted(p.name for p in several.glob("*.txt"))})

def pipeline(home, pause=0.0, workers=2, **options):
    "3 sharded stages, one plain, one that joins; returns (run, last stage)."
    from mathrepro.runs import Run
    run = Run("toy", workers=workers, home=home, progress="quiet", **options)
    draws = [run.stage(f"draw/{s}", draw, n=200 + 30 * s, seed=s, pause=pause) for s in range(3)]
    names = run.stage("names", several, draws=draws, pause=5 * pause)
    return run, run.stage("total", total, several=names, draws={s.name: s for s in draws})

def wait_for(ctx, file: str):
    "Until the file exists (60 s at most)."
    for _ in range(3000):
        if Path(file).exists(): return
        time.sleep(0.02)
    raise TimeoutError(file)

def note(ctx, text: str):
    print("noting", text)
    ctx.commit("note.json", {"text": text, "threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid(), "hash seed": os.environ.get("PYTHONHASHSEED")})

def slow_note(ctx, text: str, seconds: float):
    time.sleep(seconds); (ctx.out / "note.txt").write_text(text)

def fails(ctx, how: str):
    if how == "value": raise ValueError("no such luck")
    if how == "user": raise UserError("no problems in the file; pass another file")
    if how == "exit": raise SystemExit(3)
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "crash": print("about to crash", flush=True); ctypes.string_at(0)

def big(ctx, mib: int):
    for i, lo, hi, path in ctx.shards(mib, 1, suffix=".bin"): ctx.commit(path, random.Random(i).randbytes(1 << 20))
