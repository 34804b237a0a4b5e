"""Benchmark: rows of a paper's size through copies, near copies, a check against 20,000 test questions and Parquet (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 nice python tests/bench_bulk.py [--sizes 250000 500000 1000000 2000000] [--tests 20000] [--folder DIR] [--plot growth.svg] [--json growth.json]

The rows are problems of the world with solutions (not left out when they repeat), of which 3 % are replaced by copies of earlier rows word for word, 5 % by copies with one word exchanged, 0.5 % by a test question inside other words
(test questions are problems of the world, their longer words spelt backwards).
Every size is cleaned in a process of its own: wall time, CPU time of all threads, peak resident memory (pages of mapped files count), space on the disk while it works. Making the rows is not counted.
"""
import argparse, json, random, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

def planted(rows, tests, rng):
    "Yields (id, problem, solution): the rows, some replaced by copies of what has been."
    recent, vocabulary = [], "river seven yellow walks ticket under often table price 12 37 205".split()
    for i, (t, s) in enumerate(rows):
        u = rng.random()
        if recent and u < 0.08:
            t = rng.choice(recent)
            if u >= 0.03:
                a, b = rng.choice([m.span() for m in re.finditer(r"\w+", t)])
                t = t[:a] + rng.choice(vocabulary) + t[b:]
        elif u < 0.085: t = f"Read this. {rng.choice(tests)} Explain."
        if len(recent) < 5000: recent.append(t)
        elif u > 0.5: recent[rng.randrange(5000)] = t
        yield f"r{i}", t, s

def make(folder, n, n_tests, step):
    "rows/*.parquet of `step` rows each and test.parquet."
    import pyarrow as pa, pyarrow.parquet as pq
    from mathrepro.records import problems_table, write_table
    from mathrepro.store import PARQUET
    from mathrepro.world.problems import problems, row, stream
    spelt = re.compile(r"[A-Za-z]{4,}")                                   # in words of its own: the world's sentences are few, and half of its rows would share 13 words with some test question
    tests = [spelt.sub(lambda m: m[0][::-1], p["problem"]) for p in problems(n_tests, "test")]
    write_table(folder / "test.parquet", problems_table(tests, "0"))
    (folder / "rows").mkdir()
    drawn = ((r["problem"], r["solution"]) for r in (row(d, "train") for d in stream("train", 1)))
    source, made, options = planted(drawn, tests, random.Random(0)), 0, {k: v for k, v in PARQUET.items() if k != "row_group_size"}
    schema = pa.schema([(c, pa.string()) for c in ("id", "problem", "solution")])
    while made < n:
        with pq.ParquetWriter(folder / f"rows/part-{made // step:05d}.parquet", schema, **options) as f:
            for lo in range(0, min(step, n - made), 50_000):
                part = [next(source) for _ in range(min(50_000, step - lo, n - made - lo))]
                f.write_table(pa.table(list(zip(*part)) and [list(c) for c in zip(*part)], schema=schema))
        made += min(step, n - made)

class Clock:
    "CPU and wall seconds spent up to the first word of each step."
    def __init__(self): self.steps, self.start = {}, (time.process_time(), time.perf_counter())
    def tell(self, message):
        what = message.get("progress", (0, 0, ""))[2]
        if what and what != "scanning": self.steps.setdefault(what.split("-")[0], time.process_time() - self.start[0])

def peak():
    "Peak resident memory of this process, bytes. (ru_maxrss would begin with what the parent held.)"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def one(folder, files, out):
    "Clean `files` in this process; prints the numbers as JSON."
    import threading
    from mathrepro.bulk import clean_bulk
    from mathrepro.workers import Context
    clock, largest = Clock(), [0]
    ctx = Context(out, tell=clock.tell)
    def watch():
        while True: largest[0] = max(largest[0], sum(p.stat().st_size for p in list(ctx.out.glob("*.bin")))); time.sleep(1)
    threading.Thread(target=watch, daemon=True).start()
    counts = clean_bulk(ctx, files, folder / "test.parquet")
    cpu, wall = time.process_time() - clock.start[0], time.perf_counter() - clock.start[1]
    at = [*clock.steps.items(), ("end", cpu)]
    print(json.dumps(dict(rows=counts["rows"], wall=wall, cpu=cpu, steps={k: b - a for (k, a), (_, b) in zip(at, at[1:])}, peak=peak(),
                          disk=largest[0], written=sum(p.stat().st_size for p in ctx.out.rglob("*.parquet")), counts=counts)))

def plot(results, path):
    "Time and memory over rows."
    import matplotlib; matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x = [r["rows"] / 1e6 for r in results]
    for k, name in (("cpu", "CPU"), ("wall", "wall")): left.plot(x, [r[k] / 60 for r in results], "o-", label=name)
    left.set(xlabel="million rows", ylabel="minutes", ylim=0); left.legend()
    for k, name in (("peak", "memory, peak"), ("disk", "disk while at work")): right.plot(x, [r[k] / 2**30 for r in results], "o-", label=name)
    right.set(xlabel="million rows", ylabel="GiB", ylim=0); right.legend()
    fig.savefig(path)

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--sizes", type=int, nargs="+", default=[250_000, 500_000, 1_000_000, 2_000_000]); p.add_argument("--tests", type=int, default=20_000)
    for name in ("folder", "plot", "json", "one"): p.add_argument(f"--{name}", type=Path)
    a, files = p.parse_args(), None
    if a.one: return one(a.folder, sorted((a.folder / "rows").glob("*.parquet"))[:a.sizes[0]], a.one)
    with tempfile.TemporaryDirectory(dir=a.folder) as tmp:
        tmp, step, results = Path(tmp), min(a.sizes), []
        start = time.process_time()
        make(tmp, max(a.sizes), a.tests, step)
        print(f"{max(a.sizes):,} rows and {a.tests:,} test questions made in {time.process_time() - start:.0f} s CPU; {sum(f.stat().st_size for f in (tmp / 'rows').iterdir()) / 2**20:.0f} MiB of Parquet", flush=True)
        for n in sorted(a.sizes):
            r = subprocess.run([sys.executable, __file__, "--one", str(tmp / f"out-{n}"), "--folder", str(tmp), "--sizes", str(n // step)], stdout=subprocess.PIPE, text=True, check=True)
            r = json.loads(r.stdout); results.append(r)
            print(f"{r['rows']:>9,} rows: {r['wall']:6.1f} s wall, {r['cpu']:6.1f} s CPU ({', '.join(f'{k} {v:.1f}' for k, v in r['steps'].items())}); peak memory {r['peak'] / 2**30:.2f} GiB, disk while at work {r['disk'] / 2**30:.2f} GiB, written {r['written'] / 2**20:.0f} MiB; kept {r['counts']['kept']:,}, {r['counts']['reasons']}", flush=True)
            shutil.rmtree(tmp / f"out-{n}")
        if len(results) > 1: print(f"growth: {(results[-1]['peak'] - results[0]['peak']) / (results[-1]['rows'] - results[0]['rows']):.0f} bytes of memory and {(results[-1]['cpu'] - results[0]['cpu']) / (results[-1]['rows'] - results[0]['rows']) * 1e6:.0f} µs of CPU a row")
    if a.plot: plot(results, a.plot)
    if a.json: a.json.write_text(json.dumps(results, indent=1))

if __name__ == "__main__": main()
