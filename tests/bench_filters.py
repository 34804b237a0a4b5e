"""Benchmark: the filters on real questions and at the size of a paper (a script; pytest does not collect it).

    MATHREPRO_DATA=... OMP_NUM_THREADS=1 python tests/bench_filters.py [--part language|near|contamination|stream] [--docs 20000] [--rows 2000000]

Rates are documents per second of CPU time (of all threads), wall time beside them. near and contamination stand beside datasketch and beside straightforward programs on the same texts.
Planted copies are real questions with one word exchanged, dropped or added at random, put among questions that are no copies of one another: they must be found and point to the very original, and of the originals none
may be flagged. What is flagged among the questions as published is listed, a few of them printed.
stream: `--rows` questions made from real ones (numbers and names exchanged, a share near copies) through exact and near duplicates and a check against 20,000 references; time and memory at every tenth.
"""
import argparse, json, os, random, re, resource, sys, time
from pathlib import Path
import numpy as np
from mathrepro import filters
from mathrepro.ngrams import words

def data(): return Path(os.environ["MATHREPRO_DATA"]) if "MATHREPRO_DATA" in os.environ else sys.exit("set MATHREPRO_DATA to the folder that holds gsm8k, math and mgsm")
def lines(name, key):
    with open(data() / name, encoding="utf-8") as f: return [json.loads(line)[key] for line in f]
def mgsm(code): return [l.rstrip("\n").rsplit("\t", 1)[0] for l in open(data() / f"mgsm/mgsm_{code}.tsv", encoding="utf-8")]

def gsm8k(split): return lines(f"gsm8k/{split}.jsonl", "question")
def math(split): return lines("math/test.jsonl", "problem") if split == "test" else [r["problem"] for r in json.loads((data() / "math/train.json").read_text("utf-8"))]

def timed(f, *args):
    start = time.perf_counter(), time.process_time()
    out = f(*args)
    return out, time.perf_counter() - start[0], time.process_time() - start[1]

def say(name, n, wall, cpu, rest=""): print(f"  {name:42} {n / cpu:>10,.0f} /s CPU  {n / wall:>10,.0f} /s wall   {rest}", flush=True)

def edited(text, rng, vocabulary, kind):
    "One word exchanged, dropped or added; the rest of the text is left as it is."
    at = [m.span() for m in re.finditer(r"[^\W_]+", text)]
    lo, hi = rng.choice(at)
    new = rng.choice(vocabulary)
    while new == text[lo:hi].lower(): new = rng.choice(vocabulary)
    return text[:lo] + {"exchanged": new, "dropped": "", "added": f"{new} {text[lo:hi]}"}[kind] + text[hi:]

def language():
    sets = {"GSM8K test": gsm8k("test"), "GSM8K train": gsm8k("train"), "MATH test": math("test"), "MGSM English": mgsm("en"), "MGSM German": mgsm("de"), "MGSM Swahili": mgsm("sw")}
    filters.is_english("Load the model.")
    print("language: share kept as English, beside the released ASCII rule")
    for name, texts in sets.items():
        kept, wall, cpu = timed(filters.are_english, texts)
        say(name, len(texts), wall, cpu, f"kept {np.mean(kept):.2%} of {len(texts)}; ASCII rule {np.mean([filters.is_ascii_english(t) for t in texts]):.2%}")

def datasketch_near(texts, threshold, shingle):
    from datasketch import MinHash, MinHashLSH
    lsh, of = MinHashLSH(threshold=threshold, num_perm=128), []
    for i, t in enumerate(texts):
        m = MinHash(num_perm=128); m.update_batch([s.encode() for s in shingle(t)])
        near = lsh.query(m)
        of.append(min(near) if near else i)
        if not near: lsh.insert(i, m)
    return of

def rensa_near(texts, threshold, shingle):
    from rensa import RMinHash, RMinHashDeduplicator
    dedup, of = RMinHashDeduplicator(threshold=threshold, num_perm=128, use_lsh=True, num_bands=32), []
    for i, m in enumerate(RMinHash.from_token_sets([shingle(t) for t in texts], 128, 42)):
        near = dedup.get_duplicates(m)
        of.append(min(map(int, near)) if near else i)
        if not near: dedup.add(str(i), m)
    return of

def word_pairs(t): w = words(t); return list(set(w)) + [f"{a} {b}" for a, b in zip([""] + w, w)]
def word_fives(t): w = words(t); return [" ".join(w[i:i + 5]) for i in range(max(len(w) - 4, 1))]

def near(docs):
    rng, vocabulary = random.Random(0), [w for t in gsm8k("train")[:500] for w in words(t) if w.isalpha()]
    base = {"GSM8K": gsm8k("train") + gsm8k("test"), "MATH, 9 words or more": [t for t in math("train") + math("test") if len(words(t)) >= 9]}
    short = [t for t in base["MATH, 9 words or more"] if len(words(t)) <= 15]
    base["MATH, 9 to 15 words"] = short
    for name, texts in base.items():
        of = filters.near_duplicates(texts)
        found = [(i, j) for i, j in enumerate(of) if i != j]
        print(f"near copies among {len(texts):,} texts of {name} as published: {len(found)}; with the same numbers: {sum(i != j for i, j in enumerate(filters.near_duplicates(texts, same_numbers=True)))}")
        for i, j in rng.sample(found, min(3, len(found))): print(f"    {filters.similarity(texts[i], texts[j]):.2f} {texts[j][:110]!r}\n         {texts[i][:110]!r}")
        originals = [t for i, t in enumerate(texts) if of[i] == i]
        for kind in ("exchanged", "dropped", "added"):
            n = len(originals)
            chosen = [rng.randrange(n) for _ in range(min(n, 3000))]
            mixed = originals + [edited(originals[i], rng, vocabulary, kind) for i in chosen]
            got = filters.near_duplicates(mixed)
            right = sum(got[n + k] == i for k, i in enumerate(chosen)); some = sum(got[n + k] != n + k for k in range(len(chosen)))
            false = sum(got[i] != i for i in range(n))
            print(f"  one word {kind:10} recall {some / len(chosen):.2%} (of the very original {right / len(chosen):.2%}), precision {some / max(some + false, 1):.2%} ({false} others flagged)")
    from mathrepro.world.problems import problems
    made_up = [p["problem"] for p in problems(docs, "train")]
    of = filters.near_duplicates(made_up)
    kept = [t for i, t in enumerate(made_up) if of[i] == i]
    got = filters.near_duplicates(kept + [edited(t, rng, vocabulary, "exchanged") for t in kept])[len(kept):]
    print(f"world problems: {len(made_up) - len(kept):,} of {len(made_up):,} near copies (same numbers: {sum(i != j for i, j in enumerate(filters.near_duplicates(made_up, same_numbers=True))):,}); planted one-word edits found {np.mean([j < len(kept) + i for i, j in enumerate(got)]):.2%}, of the very original {np.mean(np.array(got) == np.arange(len(kept))):.2%}")
    texts = (base["GSM8K"] * (docs // len(base["GSM8K"]) + 1))[:docs // 2]
    texts = texts + [edited(t, rng, vocabulary, "exchanged") for t in texts]
    print(f"speed on {len(texts):,} texts, half of them one-word edits; planted found in parentheses")
    half = len(texts) // 2
    for label, f, args, share in (("near_duplicates", lambda t: filters.near_duplicates(t), (), 1), ("rensa, tokens from Python", rensa_near, (0.7, word_pairs), 1), ("datasketch, words and pairs", datasketch_near, (0.7, word_pairs), 8), ("datasketch, 5-word shingles, 0.5", datasketch_near, (0.5, word_fives), 8)):
        t = texts[:half // share] + texts[half:half + half // share]
        of, wall, cpu = timed(f, t, *args)
        say(label, len(t), wall, cpu, f"({np.mean([of[i] != i for i in range(half // share, len(t))]):.2%} of {len(t) // 2:,})")

def contaminated_by_sets(texts, references, n):
    def runs(t): w = words(t); return {tuple(w[i:i + n]) for i in range(len(w) - n + 1)}
    known = set().union(*map(runs, references))
    return [not known.isdisjoint(runs(t)) for t in texts]

def contamination(docs):
    train, test = gsm8k("train"), gsm8k("test")
    for a, b, (x, y) in (("GSM8K train", "GSM8K test", (train, test)), ("GSM8K test", "GSM8K train", (test, train)), ("MATH train", "MATH test", (math("train"), math("test")))):
        ours, plain = filters.contaminated(x, y), contaminated_by_sets(x, y, 13)
        hits = filters.contamination(x, y, near=0.7)
        kinds = {k: sum(h is not None and h.rule == k for h in hits) for k in ("n-gram", "whole text", "near copy")}
        print(f"{a} against {b}: {sum(ours)} of {len(x):,} flagged; sets of tuples flag {sum(plain)}, all of them ours too: {all(o for o, p in zip(ours, plain) if p)}; by rule {kinds}")
        for i in [i for i, h in enumerate(hits) if h][:4]: print(f"    {hits[i].rule}, score {hits[i].score:.2f}: {x[i][:100]!r}\n        {y[hits[i].reference][:100]!r}")
    rng, vocabulary = random.Random(1), [w for t in train[:500] for w in words(t) if w.isalpha()]
    references = test + math("test")
    refs = [t for t in references if len(words(t)) >= 9]
    for name, noise in (("unchanged", lambda t: t), ("case, punctuation, spaces", lambda t: re.sub(r"[,.?!]", " ;", t.upper()).replace(" ", "\n ")), ("inside another text", lambda t: f"Read this. {t} Answer it."), ("one word exchanged", lambda t: edited(t, rng, vocabulary, "exchanged"))):
        planted = [noise(t) for t in refs]
        print(f"  planted, {name:26} n-gram rule {np.mean(filters.contaminated(planted, references)):.2%}, with near copies {np.mean([h is not None for h in filters.contamination(planted, references, near=0.7)]):.2%}")
    texts = (train * (docs // len(train) + 1))[:docs]
    index, wall, cpu = timed(filters.ReferenceIndex, references)
    print(f"speed: {len(texts):,} texts against {len(references):,} references (index built in {cpu:.2f} s)")
    flags, wall, cpu = timed(index.flags, texts)
    say("ReferenceIndex.flags", len(texts), wall, cpu)
    _, wall, cpu = timed(contaminated_by_sets, texts[:8000], references, 13)
    say("sets of tuples, index included", 8000, wall, cpu)

def made(n, seed=0, share=0.1):
    "Yields batches of questions: real ones with words and numbers exchanged at random; a `share` are copies, word for word or nearly, of the last few thousand."
    rng, pool = random.Random(seed), [re.findall(r"\w+|\W+", t) for t in gsm8k("train")]
    vocabulary = sorted({w for p in pool for w in p if w.isalpha()})
    batch, recent = [], []
    for i in range(n):
        if recent and rng.random() < share:
            text = rng.choice(recent)
            batch.append(text if rng.random() < 0.3 else edited(text, rng, vocabulary, "exchanged"))
        else:
            parts = [str(rng.randint(2, 999)) if w.isdigit() else rng.choice(vocabulary) if w.isalpha() and rng.random() < 0.3 else w for w in rng.choice(pool)]
            batch.append("".join(parts))
            if len(recent) < 5000: recent.append(batch[-1])
            else: recent[rng.randrange(5000)] = batch[-1]
        if len(batch) == 20000 or i + 1 == n: yield batch; batch = []

def stream(n):
    references = (math("test") + gsm8k("test") + gsm8k("train") + math("train"))[:20000]
    index, exact, near = filters.ReferenceIndex(references), filters.ExactDuplicates(), filters.NearDuplicates()
    spent, done, flagged = np.zeros(3), 0, np.zeros(3, np.int64)
    print(f"stream: {n:,} made questions, {len(references):,} references")
    for batch in made(n):
        for k, f in enumerate((exact.add, lambda b: near.add(b).of, index.flags)):
            out, _, cpu = timed(f, batch)
            spent[k] += cpu
            flagged[k] += out.sum() if k == 2 else (out != np.arange(done, done + len(batch))).sum()
        done += len(batch)
        if done * 10 // n > (done - len(batch)) * 10 // n:
            print(f"  {done:>9,} rows: exact {spent[0]:6.1f} s, near {spent[1]:6.1f} s, contamination {spent[2]:6.1f} s CPU; copies {flagged[0]:,} / {flagged[1]:,}, contaminated {flagged[2]:,}; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)

if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--part", choices=["language", "near", "contamination", "stream"]); p.add_argument("--docs", type=int, default=20000); p.add_argument("--rows", type=int, default=2000000)
    a = p.parse_args()
    for part, f in (("language", language), ("near", lambda: near(a.docs)), ("contamination", lambda: contamination(a.docs)), ("stream", lambda: stream(a.rows))):
        if a.part in (None, part): f()
