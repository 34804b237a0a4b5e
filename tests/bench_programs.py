"""Time per program of the warm pool, beside a plain subprocess per program: python tests/bench_programs.py [--plain 100]. Needs $MATHREPRO_DATA/tora."""
import argparse, json, os, re, statistics, subprocess, sys, time
from pathlib import Path

BLOCK = re.compile(r"```python\n(.*?)```\s*```output\n(.*?)```", re.S)

def recorded() -> list:
    "(index, program, recorded output) of every row of ToRA-70B's GSM8K file that has a program."
    path = Path(os.environ["MATHREPRO_DATA"]) / "tora" / "tora-70b-gsm8k.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(r["idx"], code, out) for r in rows for code, out in BLOCK.findall(r["code"][0])]

def same(out, result) -> bool:
    "Recorded output equals the real one; a recorded error is an error of the same kind."
    if "TimeoutError" in out: return result.timed_out
    if "Error" in out: return result.error == out.strip()
    return not result.error and result.output.strip() == out.strip()

def plain(code) -> float:
    "Seconds of the same program in a subprocess of its own."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, timeout=30)
    return time.perf_counter() - start

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--plain", type=int, default=100)
    p.add_argument("--workers", type=int, default=None)
    args = p.parse_args()
    from mathrepro.programs import run_programs
    rows, start = recorded(), time.perf_counter()
    done = run_programs([c for _, c, _ in rows], workers=args.workers, timeout=10.0)
    wall = time.perf_counter() - start
    took = sorted(r.seconds for r in done)
    wrong = [i for (i, _, out), r in zip(rows, done) if not same(out, r)]
    print(f"{len(rows)} programs, {done[0].backend}: {wall:.1f} s in all, median {statistics.median(took)*1e3:.1f} ms, 99th percentile {took[int(len(took)*.99)]*1e3:.1f} ms, differing {wrong}")
    for name, keep in (("any", rows), ("with sympy", [r for r in rows if "sympy" in r[1]])):
        some = [c for i, c, _ in keep if i != 881][:args.plain]
        ours = sorted(r.seconds for r in run_programs(some, workers=1))
        theirs = sorted(plain(c) for c in some)
        print(f"{len(some)} programs ({name}), one at a time: pool median {statistics.median(ours)*1e3:.1f} ms, plain subprocess median {statistics.median(theirs)*1e3:.1f} ms") if some else None

if __name__ == "__main__": main()
