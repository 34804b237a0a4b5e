"""Rejection sampling on real model samples: OpenAI's four published solutions per GSM8K test question (MIT licence).

The expected numbers were measured by running the released code of the RFT paper on the same samples. The data are read from
$MATHREPRO_DATA/gsm8k; without them the tests skip and say so.
"""
import itertools, json, os, random
from collections import Counter
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from mathrepro.answers import judge
from mathrepro.equations import annotations
from mathrepro.rejection import distinct_curve, first_k, path_counts, path_key, pool, select_paths

DATA = Path(os.environ.get("MATHREPRO_DATA", "/nonexistent")) / "gsm8k"
needs_data = pytest.mark.skipif(not (DATA / "example_model_solutions.jsonl").exists(),
                                reason="needs gsm8k/example_model_solutions.jsonl and test.jsonl under $MATHREPRO_DATA")
MODELS = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]

def rows(name):
    with open(DATA / name, encoding="utf-8") as f: return [json.loads(line) for line in f]

def marked(text):
    "The published solutions end in `A: 18`; the paper's rules want `#### 18`."
    head, mark, tail = text.rpartition("\nA: ")
    return f"{head}\n#### {tail}" if mark else text

@pytest.fixture(scope="module")
def fixture():
    "(samples per model, gold answers, gold solutions, published labels in pooled order)"
    solutions, test = rows("example_model_solutions.jsonl"), rows("test.jsonl")
    files = [[dict(question_id=i, text=marked(row[model]["solution"])) for i, row in enumerate(solutions)] for model in MODELS]
    labels = [row[model]["is_correct"] for model in MODELS for row in solutions]
    answers = {i: row["answer"].rsplit("#### ")[-1] for i, row in enumerate(test)}
    return files, answers, {i: row["answer"] for i, row in enumerate(test)}, labels

@needs_data
def test_the_answer_judgement_agrees_with_every_published_label(fixture):
    files, answers, _, labels = fixture
    verdicts = [judge(s["text"], answers[s["question_id"]], "paper")[0] == "right" for s in pool(*files)]
    assert len(labels) == 5276 and verdicts == labels
    assert [sum(verdicts[i * 1319:(i + 1) * 1319]) for i in range(4)] == [286, 515, 458, 742]

@needs_data
def test_counts_histogram_and_replacements(fixture):
    files, answers, _, _ = fixture
    chosen = select_paths(pool(*files), answers)
    assert chosen.counts == dict(samples=5276, answer_right=2001, calculation_right=1998, distinct=1457)
    assert chosen.reasons["replaced"] == 70
    per_question = Counter(Counter(path["question_id"] for path in chosen.kept).values())
    assert per_question == {1: 450, 2: 314, 3: 105, 4: 16} and 1319 - per_question.total() == 434
    assert len(chosen.kept) == 1457 and len(chosen.rejected) == 5276 - 1457 == sum(chosen.reasons.values())
    assert sum(not path["equations"] for path in select_paths(pool(*files), answers, "all").kept) == 7
    assert [path["question_id"] for path in chosen.kept] == sorted(path["question_id"] for path in chosen.kept)

@needs_data
def test_the_three_wrong_calculations(fixture):
    files, answers, _, _ = fixture
    wrong = {(r["question_id"], r["detail"]) for r in select_paths(pool(*files), answers).rejected if r["reason"] == "calculation wrong"}
    assert wrong == {(988, "500/month*12=6000"), (1099, "5-3=2.5"), (580, "520*(1+0.18)=500")}

@needs_data
def test_prefixes_and_the_union_with_gold(fixture):
    files, answers, solutions, _ = fixture
    expected = [(286, 1.1676), (698, 1.4481), (978, 1.6315), (1457, 1.9682)]
    for k, (distinct, union) in enumerate(expected, 1):
        prefix = first_k(pool(*files), k)
        assert select_paths(prefix, answers).counts["distinct"] == distinct
        row, = distinct_curve(prefix, answers, [k], solutions)
        assert round(row["distinct"] * 1319) == distinct and round(row["with_gold"], 4) == union
        apart = select_paths(prefix, answers, gold_in_dedupe=True, gold_solutions=solutions).counts["distinct"]
        assert round(apart / 1319 + 1, 4) == union

@needs_data
def test_what_the_distance_rule_and_the_file_order_change(fixture):
    files, answers, _, _ = fixture
    texts = lambda chosen: [path["text"] for path in chosen.kept]
    keys = lambda chosen: {(path["question_id"], path_key(path["equations"])) for path in chosen.kept}
    farthest, first = (select_paths(pool(*files), answers, keep) for keep in ("farthest", "first"))
    assert sum(a != b for a, b in zip(texts(farthest), texts(first), strict=True)) == 65 and keys(farthest) == keys(first)
    assert all(keys(select_paths(pool(*order), answers)) == keys(farthest) for order in itertools.permutations(files))
    by_key = lambda chosen: {(p["question_id"], path_key(p["equations"])): p["text"] for p in chosen.kept}
    forward, backward = by_key(farthest), by_key(select_paths(pool(*files[::-1]), answers))
    assert sum(forward[key] != backward[key] for key in forward) == 229
    assert select_paths(pool(*files), answers, normalise=["equation order"]).counts["distinct"] == 1453

@needs_data
def test_interleaving_questions_changes_nothing(fixture):
    files, answers, _, _ = fixture
    by_question = [sample for group in zip(*files) for sample in group]
    assert select_paths(by_question, answers).kept == select_paths(iter(pool(*files)), answers).kept

@needs_data
def test_the_filter_takes_no_notice_of_gold():
    train = rows("train.jsonl")
    solutions = {i: row["answer"] for i, row in enumerate(train)}
    as_samples = [dict(question_id=i, text=text) for i, text in solutions.items()]
    chosen = select_paths(as_samples, solutions)
    assert len(solutions) + len(chosen.kept) == 14_946
    assert select_paths(as_samples, solutions, gold_in_dedupe=True).reasons == {"same as gold": 7473}

# --- Algorithm 1 against a slow, literal reading of it -------------------------------------------------------------------------------

def edit_distance(a, b):
    "Levenshtein distance by the textbook table."
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, line = line, [i]
        for j, y in enumerate(b, 1): line.append(min(previous[j] + 1, line[-1] + 1, previous[j-1] + (x != y)))
    return line[-1]

def algorithm_1(paths):
    "[(key, text)] in scan order -> kept texts by key, every distance computed anew each time."
    kept = {}
    for key, text in paths:
        if key not in kept: kept[key] = text; continue
        others = [kept[k] for k in kept if k != key]
        if sum(edit_distance(text, o) for o in others) > sum(edit_distance(kept[key], o) for o in others): kept[key] = text
    return kept

words = st.text(alphabet="ab ", max_size=8)
sampled = st.tuples(st.integers(0, 2), st.integers(1, 4), words, st.sampled_from(["7", "7", "7", "8"]), st.sampled_from(["", "", "", "<<1+1=3>>"]))

@settings(max_examples=300, deadline=None)
@given(st.lists(sampled, max_size=25))
def test_select_paths_is_algorithm_1(draws):
    samples = [dict(question_id=q, text=f"{prose}<<{n}+0={n}>>{extra}\n#### {answer}") for q, n, prose, answer, extra in draws]
    chosen = select_paths(samples, {0: "7", 1: "7", 2: "7"})
    right = [(s["question_id"], s["text"]) for s, (*_, answer, extra) in zip(samples, draws) if answer == "7" and not extra]
    expected = {q: algorithm_1([("|".join(annotations(t)), t) for question, t in right if question == q]) for q in range(3)}
    assert [(p["question_id"], p["text"]) for p in chosen.kept] == [(q, text) for q in range(3) for text in expected[q].values()]
    assert all(samples[row]["text"] == path["text"] for row, path in zip(chosen.rows, chosen.kept, strict=True))
    assert sorted(chosen.rows + [r["row"] for r in chosen.rejected]) == list(range(len(samples)))
    assert chosen.counts["calculation_right"] == len(right) and chosen.counts["distinct"] == sum(map(len, expected.values()))

@settings(max_examples=50, deadline=None)
@given(st.lists(sampled, min_size=6, max_size=9), st.integers(1, 6))
def test_the_curve_is_the_mean_over_all_subsets(draws, k):
    samples = [dict(question_id=0, text=f"<<{n}+0={n}>>\n#### {answer}") for _, n, _, answer, _ in draws]
    subsets = [select_paths(list(subset), {0: "7"}, "first").counts["distinct"] for subset in itertools.combinations(samples, k)]
    row, = distinct_curve(samples, {0: "7"}, [k])
    assert abs(row["distinct"] - sum(subsets) / len(subsets)) < 1e-9

def test_the_random_rule_is_fair_and_does_not_depend_on_other_questions():
    texts = [f"{'x' * i}<<1+1=2>>\n#### 2" for i in range(5)]
    picks = Counter(select_paths([dict(question_id=0, text=t) for t in texts], {0: 2}, "random", seed=s).rows[0] for s in range(2000))
    assert set(picks) == set(range(5)) and all(330 < n < 470 for n in picks.values())      # 400 expected, sd 18
    alone = select_paths([dict(question_id=0, text=t) for t in texts], {0: 2, 1: 2}, "random").kept
    mixed = select_paths([dict(question_id=q, text=t) for t in texts for q in (1, 0)], {0: 2, 1: 2}, "random").kept
    assert alone == [path for path in mixed if path["question_id"] == 0]

def test_the_ledger_is_small():
    "100,000 rejected samples must not be kept alive."
    import tracemalloc
    samples = (dict(question_id=i % 100, text=f"sample number {i} says so: <<{i}+1={i+1}>>\n#### 1") for i in range(100_000))
    tracemalloc.start()
    chosen = select_paths(samples, {i: 2 for i in range(100)})
    held = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert len(chosen.rejected) == 100_000 and held < 20e6
    assert next(iter(chosen.rejected)) == dict(row=0, question_id=0, reason="answer wrong", detail=None)
