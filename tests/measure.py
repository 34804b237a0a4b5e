"""Runs benchmark scripts one after the other and keeps what they print, with command, target and hardware, in one record, from which `mathrepro report` draws a page.

    MATHREPRO_DATA=… python tests/measure.py --into reports/benchmarks.json            # all, about half an hour of two cores
    MATHREPRO_DATA=… python tests/measure.py concepts served --into reports/benchmarks.json

A script that fails keeps its earlier record, and the exit code says how many failed."""
import argparse, json, os, platform, subprocess, sys, time
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
# name: (what, what the project asks for, command)
BENCHES = {
    "concepts": ("Concept compositions on a graph of the MathScale paper's size", "at least 3 million walks/s on one core; 2 million unique compositions in 15 s and 2 GiB", "bench_concepts.py"),
    "questions": ("Nearest seed questions of 2 million compositions", "2 million against 20,857 seeds in 15 s", "bench_questions.py"),
    "language": ("Language filter on real questions", "keeps 99 % of GSM8K and English MGSM, 1 % of German, 5 % of Swahili; 10,000 questions/s", "bench_filters.py --part language"),
    "near": ("Near copies", "50,000 short documents/s; 99 % of planted one-word edits found", "bench_filters.py --part near"),
    "contamination": ("Copies of test questions", "documents/s and recall on planted copies stated", "bench_filters.py --part contamination"),
    "programs": ("Programs of ToRA-70B on GSM8K, run anew", "every recorded output; median 60 ms, all in 4 minutes", "bench_programs.py"),
    "influence": ("Influence features beside a loop of one example at a time", "5 times the examples/s; ranking with a Spearman of 0.999", "bench_influence.py world:m"),
    "rejection": ("Rejection sampling at the size of the RFT paper", "747,300 samples of 7,473 questions", "bench_rejection.py"),
    "preference": ("TRL's trainers beside a bare loop", "overhead stated", "bench_preference.py --sizes m --rounds 2"),
    "cluster": ("Samples from two Ray nodes beside one process", "the same rows; overhead stated", "bench_cluster.py"),
    "served": ("MathScale's steps against a real served model of 135M parameters", "parse failures and yields as they are", "bench_served.py"),
}

def measured(name) -> dict:
    "The record of one benchmark; raises CalledProcessError when it fails."
    title, target, command = BENCHES[name]
    load, start = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([sys.executable, *[str(HERE/w) if w.endswith(".py") else w for w in command.split()]], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
    return dict(title=title, target=target, command=f"python tests/{command}", printed=done.stdout.strip("\n").rstrip(), minutes=round((time.monotonic() - start)/60, 1), hardware=f"{os.cpu_count()} CPU cores ({platform.machine()}); load before: {load:.1f}", date=str(date.today()))

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES)); p.add_argument("--into", default="benchmarks.json")
    a, failed = p.parse_args(), 0
    for unknown in set(a.names) - set(BENCHES): p.error(f"no benchmark {unknown}; choose from {', '.join(BENCHES)}")
    for name in a.names or BENCHES:
        path = Path(a.into)
        try: row = measured(name)
        except subprocess.CalledProcessError as e: failed += 1; print(f"{name}: exit code {e.returncode}", file=sys.stderr); continue
        have = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({n: {**have, name: row}[n] for n in BENCHES if n in {**have, name: row}}, indent=1, ensure_ascii=False) + "\n")
        print(f"== {name}: {row['minutes']} min\n{row['printed']}\n", flush=True)
    return failed

if __name__ == "__main__": sys.exit(main())
