"""Benchmark: `select_paths` at the size of the RFT paper, 7,473 questions with 100 samples each (a script; pytest does not collect it).

    MATHREPRO_DATA=... python tests/bench_rejection.py [--questions 7473] [--k 100] [--slice 200] [--plain 5]

The samples are made from real texts: right paths are GSM8K training solutions with words exchanged and calculations commuted or left
unannotated (all stay right), wrong ones are published model solutions of other questions. Their numbers are set to the paper's for
LLaMA-7B: about 53 right answers and 5.25 distinct paths per question. Two straightforward programs run on a slice for comparison: one that
measures every distance anew with rapidfuzz and parses every annotation, and one that does so with a textbook Levenshtein table.
Both must keep the same rows.
"""
import argparse, json, os, random, re, resource, sys, time
from pathlib import Path
from rapidfuzz.distance.Levenshtein import distance
from mathrepro.answers import judge
from mathrepro.equations import OFFICIAL, _check_links, parse_annotations
from mathrepro.rejection import select_paths

def read(name):
    if "MATHREPRO_DATA" not in os.environ: sys.exit("set MATHREPRO_DATA to the folder that holds gsm8k/train.jsonl and gsm8k/example_model_solutions.jsonl")
    with open(Path(os.environ["MATHREPRO_DATA"]) / "gsm8k" / name, encoding="utf-8") as f: return [json.loads(line) for line in f]

COMMUTE = re.compile(r"<<([0-9.]+)([+*])([0-9.]+)=([0-9.]+)>>")

def variants(solution, rng, n=7):
    "Up to `n` texts of one solution with different equation lists, all right; the first is the solution itself."
    found = {tuple(e.text for e in parse_annotations(solution)): solution}
    for _ in range(4 * n):
        text = COMMUTE.sub(lambda m: f"<<{m[3]}{m[2]}{m[1]}={m[4]}>>" if rng.random() < 0.4 else m[0], solution)
        if rng.random() < 0.5: text = re.sub(r"<<[^>]*>>", lambda m: "" if rng.random() < 0.3 else m[0], text)
        found.setdefault(tuple(e.text for e in parse_annotations(text)), text)
        if len(found) == n: break
    return list(found.values())

def reworded(text, words, rng):
    "About every eighth plain word of `text` exchanged."
    return " ".join(w if rng.random() > 0.12 or "<<" in w or "#" in w or not w.isalpha() else rng.choice(words) for w in text.split(" "))

def make_samples(n_questions, k, seed=0):
    "(samples with the seed as outer loop, as a sampler writes its files; gold answers)"
    rng, train = random.Random(seed), read("train.jsonl")[:n_questions]
    others = [row[m]["solution"] for row in read("example_model_solutions.jsonl") for m in row if isinstance(row[m], dict)]
    others = [head + "\n#### " + tail for head, mark, tail in (text.rpartition("\nA: ") for text in others) if mark]
    words = [w for row in train[:500] for w in row["question"].split() if w.isalpha()]
    paths = [variants(row["answer"], rng) for row in train]
    ease = [rng.betavariate(1.1, 0.97) for _ in train]              # share of right samples: mean 0.53, some questions near 0 or 1
    samples = []
    for _ in range(k):
        for q, own in enumerate(paths):
            if rng.random() > ease[q]: text = rng.choice(others)
            else: text = reworded(own[min(int(rng.paretovariate(1.4)) - 1, len(own) - 1)] if len(own) > 1 else own[0], words, rng)
            samples.append(dict(question_id=q, text=text))
    return samples, {q: row["answer"].rsplit("#### ")[-1] for q, row in enumerate(train)}

def plain_distance(a, b):
    "The textbook table."
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, line = line, [i]
        for j, y in enumerate(b, 1): line.append(min(previous[j] + 1, line[-1] + 1, previous[j-1] + (x != y)))
    return line[-1]

def straightforward(samples, gold, measure):
    "Kept texts per question by the literal algorithm: nothing remembered, nothing skipped."
    kept = {}
    for sample in samples:
        q, text = sample["question_id"], sample["text"]
        if judge(text, gold[q], "paper")[0] != "right": continue
        equations = [e.text for e in parse_annotations(text)]
        if not all(_check_links(e, 1e-3, "ignore tail", OFFICIAL) for e in equations): continue
        own, key = kept.setdefault(q, {}), "|".join(equations).replace(" ", "")
        if key not in own: own[key] = text; continue
        rest = [own[k] for k in own if k != key]
        if sum(measure(text, t) for t in rest) > sum(measure(own[key], t) for t in rest): own[key] = text
    return [text for q in gold if q in kept for text in kept[q].values()]

def timed(f, *args):
    start = time.perf_counter(), time.process_time()
    result = f(*args)
    return result, time.perf_counter() - start[0], time.process_time() - start[1]

def main():
    p = argparse.ArgumentParser()
    for name, default in [("questions", 7473), ("k", 100), ("slice", 200), ("plain", 5)]: p.add_argument(f"--{name}", type=int, default=default)
    a = p.parse_args()
    (samples, gold), build, _ = timed(make_samples, a.questions, a.k)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    chosen, wall, cpu = timed(select_paths, samples, gold)
    n, q = len(samples), len(gold)
    print(f"samples {n:,} in {q:,} questions (made in {build:.0f} s); right {chosen.counts['answer_right']/q:.1f}, "
          f"distinct {chosen.counts['distinct']/q:.2f} per question; replaced {chosen.reasons['replaced']:,}")
    print(f"{'program':38}{'samples':>9}{'wall s':>9}{'CPU s':>8}{'µs/sample':>11}")
    row = lambda name, n, wall, cpu: print(f"{name:38}{n:9,}{wall:9.2f}{cpu:8.2f}{cpu/n*1e6:11.1f}")
    row("select_paths", n, wall, cpu)
    for size, measure, name in [(a.slice, distance, "straightforward, rapidfuzz"), (a.plain, plain_distance, "straightforward, plain Python table")]:
        part, own = [s for s in samples if s["question_id"] < size], {i: gold[i] for i in range(min(size, q))}
        ours, wall, cpu = timed(select_paths, part, own)
        theirs, their_wall, their_cpu = timed(straightforward, part, own, measure)
        assert [path["text"] for path in ours.kept] == theirs, "the programs disagree"
        row(name, len(part), their_wall, their_cpu); row("  select_paths on the same slice", len(part), wall, cpu)
    print(f"peak memory {peak():.0f} MiB, of which the input list and this script {before:.0f} MiB")

if __name__ == "__main__": sys.exit(main())
