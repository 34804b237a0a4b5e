"Valuation as stages of a run: world texts, pairs that a world author writes from them, real gradients; packages that score the same; bad input. Function-level tests are in nbs/58a."
import json, math, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np, pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, influence, synthesis, valuation, warmup
from mathrepro.arms import TrainRow
from mathrepro.config import UserError
from mathrepro.keys import file_hash
from mathrepro.ngrams import words
from mathrepro.records import Problem, read_rows, read_table, write_table
from mathrepro.runs import Run
from mathrepro.valuation import Chosen, Value, bm25, bm25_tasks, judged, precision_at, quality_table
from mathrepro.workers import Context, close_workers
from mathrepro.world import texts as world_texts
from mathrepro.world.corpus import documents
from mathrepro.world.problems import problems
from mathrepro.world.texts import SourceText

TARGET = ["time", "percentages"]

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def points_of(topic):
    from mathrepro.world.knowledge import POINTS
    return [k for k, p in POINTS.items() if p.topic == topic]

def pipeline(home, workers=0, n=60):
    "run and its stages by name: everything from texts to values by every method, of pairs."
    import torch; torch.set_num_threads(1)                       # as the workers have: sums depend on it
    run = Run("valuation", workers=workers, home=home, progress="quiet")
    s = dict(base=run.stage("base", arms.base_model, model="world:xs"), texts=run.stage("texts", world_texts.load_texts, n=n, seed=1, options=dict(target=TARGET, relevant=0.3)))
    s["target"] = [run.stage(f"target/{t}", arms.load_problems, dataset="world", split="valid", n=4, seed=5, options=dict(points=points_of(t), steps=[1])) for t in TARGET]
    s["asked"] = run.stage("asked", synthesis.requests, texts=s["texts"], stages=["grade", "middle"], per_text="all")
    s["said"] = run.stage("said", synthesis.write, requests=s["asked"], engine=dict(engine="world-author"), temperature=0.7)
    s["pairs"] = run.stage("pairs", synthesis.screen, synthesised=[s["said"]], parts=["consistency"])
    s["warm"] = run.stage("warm-up", warmup.warm_up, base=s["base"], rows=s["pairs"], template="plain", settings=dict(fraction=0.5, epochs=2, rank=2, alpha=8.0, batch_size=8, learning_rate=1e-3))
    s["features"] = run.stage("features", influence.features, base=s["base"], warm=s["warm"], rows=s["pairs"], template="plain", settings=dict(dim=256, shard=32))
    s["examples"] = [run.stage(f"examples/{t}", arms.gold_rows, problems=p) for t, p in zip(TARGET, s["target"])]
    s["targets"] = [run.stage(f"targets/{t}", influence.features, base=s["base"], warm=s["warm"], rows=e, form="plain", template="plain", settings=dict(dim=256)) for t, e in zip(TARGET, s["examples"])]
    s["common"] = run.stage("common", influence.features, base=s["base"], warm=s["warm"], rows=s["pairs"], form="plain", template="plain", settings=dict(dim=256, shard=32))
    need = {"influence": dict(features=s["features"], targets=s["targets"]), "centred-influence": dict(features=s["features"], targets=s["targets"], common=s["common"]), "bm25": dict(target=s["target"]), "high-loss": dict(model=s["base"], template="plain"), "low-loss": dict(model=s["base"], template="plain")}
    for how in valuation.METHODS:
        s[how] = run.stage(f"value/{how}", valuation.value, texts=s["texts"], how=how, rows=s["pairs"], synthesised=[s["said"]], pool="max", seed=3, **need.get(how, {}))
    s["chosen"] = run.stage("chosen", valuation.choose, texts=s["texts"], values=s["bm25"], k=15, tokenizer=s["base"])
    for m in valuation.MATCHES: s[f"control/{m}"] = run.stage(f"control/{m}", valuation.control, texts=s["texts"], like=s["chosen"], match=m, tolerance=0.05, tokenizer=s["base"], seed=4)
    return run, s

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = pipeline(tmp_path_factory.mktemp("valuation"))
    run.compute()
    return run, s

def test_every_method_values_every_text_through_its_pairs(done):
    s = done[1]
    ids = read_table(s["texts"].file("texts.parquet"))["id"].to_pylist()
    owner = {r.id: r.text_id for r in synthesis.written(s["said"].path)}
    rows = read_rows(s["pairs"].file("rows.parquet"), TrainRow)
    of = {i: [n for n, r in enumerate(rows) if owner[r.problem_id] == i] for i in ids}
    assert min(map(len, of.values())) == 0 or max(map(len, of.values())) == 2
    each = dict(influence=influence.influence_scores(s["features"].path, [t.path for t in s["targets"]]),
                bm25=bm25_tasks([[p.problem for p in read_rows(t.file("problems.parquet"), Problem)] for t in s["target"]], [f"{r.problem} {r.solution}" for r in rows]).max(0))
    for how in valuation.METHODS:
        values = read_rows(s[how].file("values.parquet"), Value)
        assert [v.text_id for v in values] == ids and sorted(v.rank for v in values) == list(range(1, len(ids) + 1))
        assert all(v.rows == len(of[v.text_id]) and math.isnan(v.value) == (v.rows == 0) == (v.note == "no rows") for v in values)
        for v in values:
            if how in each and v.rows: assert abs(v.value - max(each[how][of[v.text_id]])) < 1e-12
        best = [v.value for v in sorted(values, key=lambda v: v.rank) if v.rows]
        assert best == sorted(best, reverse=True) and s[how].json("counts.json")["rows"] == len(rows)
    one = valuation.centred_scores(*([np.concatenate([x for _, x in influence.feature_blocks(f.path, n)]) for n in (0, 1)] for f in (s["features"],)), [[np.concatenate([x for _, x in influence.feature_blocks(t.path, n)]) for n in (0, 1)] for t in s["targets"]],
                                   [np.concatenate([x for _, x in influence.feature_blocks(s["common"].path, n)]) for n in (0, 1)], s["warm"].json("warm_up.json")["weights"])
    found = {v.text_id: v.value for v in read_rows(s["centred-influence"].file("values.parquet"), Value)}
    assert all(abs(found[i] - max(one[of[i]])) < 1e-9 for i in ids if of[i]), "blocks of shards give what whole arrays give"
    high, low = ({v.text_id: v.value for v in read_rows(s[h].file("values.parquet"), Value)} for h in ("high-loss", "low-loss"))
    single = [i for i in ids if len(of[i]) == 1]
    assert single and all(high[i] == -low[i] > 0 for i in single)

def test_workers_change_nothing(done, tmp_path):
    run, s = pipeline(tmp_path, workers=2)
    run.compute()
    names = [*valuation.METHODS, "chosen", *(f"control/{m}" for m in valuation.MATCHES)]
    files = lambda d, k: [file_hash(d[k].file(f)) for f in (("values.parquet",) if k in valuation.METHODS else ("texts.parquet", "chosen.parquet"))]
    assert [files(s, k) for k in names] == [files(done[1], k) for k in names]

def test_choice_and_controls(done):
    s = done[1]
    all_texts, taken = (read_rows(s[k].file("texts.parquet"), SourceText) for k in ("texts", "chosen"))
    best = sorted(read_rows(s["bm25"].file("values.parquet"), Value), key=lambda v: v.rank)[:15]
    assert {t.id for t in taken} == {v.text_id for v in best} and [t for t in all_texts if t in taken] == taken
    chosen = read_rows(s["chosen"].file("chosen.parquet"), Chosen)
    assert [c.text_id for c in chosen if c.chosen] == [t.id for t in taken] and all((c.reason == "") == c.chosen for c in chosen)
    want = s["chosen"].json("counts.json")
    counts = {m: s[f"control/{m}"].json("counts.json") for m in valuation.MATCHES}
    assert counts["count"]["chosen"] == counts["both"]["chosen"] == 15 == want["chosen"] and counts["tokens"]["tokens"] <= want["tokens"]
    assert abs(counts["both"]["tokens"] / want["tokens"] - 1) <= 0.05 and abs(counts["tokens"]["tokens"] / want["tokens"] - 1) <= 0.05
    synthesis.requests(ctx := Context(s["chosen"].path.parent.parent / "try"), s["chosen"].path, stages=["grade"])     # a choice is a folder of texts like any other
    assert json.loads((ctx.out / "counts.json").read_text())["texts"] == 15

def test_precision_and_table(done):
    s = done[1]
    for r in precision_at(s["bm25"], s["texts"], [5, 15, 60]): assert 0 <= r["low"] <= r["precision"] <= r["high"] <= 1 and r["unknown"] == 0
    assert abs(r["precision"] - r["base"]) < 1e-12 and abs(r["lift"] - 1) < 1e-12 and abs(r["recall"] - 1) < 1e-12
    found = {h: [s[h]] for h in valuation.METHODS}
    a, b = (quality_table(found, s["texts"], [15], n=200) for _ in "ab")
    assert a == b and len(a) == 3 * len(found) and all(r["low"] <= r["mean"] <= r["high"] for r in a if r["measure"] == "AUC")
    two = quality_table({"bm25": [s["bm25"]] * 2, "random": [s["random"]] * 2}, [s["texts"]] * 2, [15], n=200)
    assert {r["seeds"] for r in two} == {2} and abs(two[0]["mean"] - next(r for r in a if r["method"] == "bm25")["mean"]) < 1e-12

def test_intervals_cover_the_truth():
    "Rankings drawn with a known AUC: nine or more of ten 95 % bootstrap intervals hold it."
    from scipy.special import ndtr
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        relevant = {str(i): int(i < 60) for i in range(200)}
        values = {i: float(rng.normal() + r) for i, r in relevant.items()}
        row = next(r for r in quality_table({"m": [values]}, relevant, [10], n=400, seed=seed) if r["measure"] == "AUC")
        inside.append(row["low"] <= ndtr(1 / math.sqrt(2)) <= row["high"])
    assert np.mean(inside) >= 0.85

def test_bm25_is_what_two_packages_score():
    rank_bm25, bm25s = pytest.importorskip("rank_bm25"), pytest.importorskip("bm25s")
    texts, queries = documents(300, seed=5) + ["", "a a a a"], [p["problem"] for p in problems(8, seed=3)] + ["pens pens", "nothing of the kind"]
    split = [words(t) for t in texts]
    okapi = rank_bm25.BM25Okapi(split)
    assert np.allclose(bm25(queries, texts, idf="okapi"), [okapi.get_scores(words(q)) for q in queries], rtol=1e-12, atol=1e-10)
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.6, dtype="float64")
    index.index(split, show_progress=False)
    assert np.allclose(bm25(queries[:8], texts, k1=1.2, b=0.6), [index.get_scores(words(q)) * 2.2 for q in queries[:8]], rtol=1e-12, atol=1e-10)

def folder(path, **tables):
    "A folder with Parquet tables."
    path.mkdir(parents=True)
    for name, rows in tables.items(): write_table(path / f"{name}.parquet", rows)
    return path

def some_texts(n=6, text="Ben has {} pens."): return [SourceText(f"t{i}", "web", text.format(i), "[]", "[]", "here", (1, 0, -1)[i % 3]) for i in range(n)]

def test_bad_input_is_named(tmp_path):
    texts, n = folder(tmp_path / "texts", texts=some_texts()), iter(range(99))
    ctx = lambda: Context(tmp_path / f"c{next(n)}")
    with pytest.raises(UserError, match="row belongs to text 'other'"):
        valuation.value(ctx(), texts, "length", rows=folder(tmp_path / "strange", rows=[TrainRow("other", "p", "s", "gold")]))
    with pytest.raises(UserError, match="two texts have the same id"): valuation.value(ctx(), folder(tmp_path / "twice", texts=some_texts(1) * 2), "length")
    with pytest.raises(UserError, match="needs features"): valuation.value(ctx(), texts, "influence")
    with pytest.raises(UserError, match="needs relevant"): valuation.value(ctx(), folder(tmp_path / "bare", texts=bare_texts()), "relevance")
    with pytest.raises(UserError, match="task 0 has no problems"): valuation.value(ctx(), texts, "bm25", target=[folder(tmp_path / "none", problems=read_empty())])
    c = ctx(); valuation.value(c, texts, "length")
    with pytest.raises(UserError, match="all 6 values are 4"): valuation.choose(ctx(), texts, c.out, k=2)
    with pytest.raises(UserError, match="1 of 7 texts have no row"): valuation.choose(ctx(), folder(tmp_path / "more", texts=some_texts(7)), c.out, k=2)
    with pytest.raises(UserError, match="no texts"): valuation.value(ctx(), folder(tmp_path / "empty", texts=read_empty(SourceText)), "length")
    assert judged(c.out, texts).unknown == 2

def bare_texts():
    "Texts of which only the id and the words are known."
    import pyarrow as pa
    return pa.table(dict(id=["a", "b"], text=["Two pens.", "Three pens."]))

def read_empty(row=Problem):
    from mathrepro.records import schema
    return schema(row).empty_table()

def test_a_text_without_a_finite_score_is_last_and_named(tmp_path):
    "Gradients that are not numbers: the row's features are NaN, its text has no value, the others keep theirs."
    texts = folder(tmp_path / "texts", texts=some_texts())
    features, target = folder(tmp_path / "features", rows=[influence.FeatureRow(f"t{i}", 3, 1.0, 1.0, "ok") for i in range(6)]), tmp_path / "target"
    rng = np.random.default_rng(0)
    about = dict(rows=6, dim=4, settings=asdict(influence.FeatureConfig()), checkpoints=[dict(name="epoch-1", learning_rate=1e-3)])
    x = rng.normal(size=(6, 4)).astype(np.float32); x[2] = np.nan
    np.save(features / "features-1-00000.npy", x); (features / "features.json").write_text(json.dumps(about))
    target.mkdir(); np.save(target / "features-1-00000.npy", x[:2]); (target / "features.json").write_text(json.dumps(dict(about, rows=2)))
    ctx = Context(tmp_path / "c"); valuation.value(ctx, texts, "influence", features=features, targets=[target])
    values = read_rows(ctx.out / "values.parquet", Value)
    assert values[2].rank == 6 and math.isnan(values[2].value) and values[2].note == "1 of 1 rows without a finite score, the first is row 2 (t2)" and sum(math.isnan(v.value) for v in values) == 1
    counts = json.loads((ctx.out / "counts.json").read_text())
    assert counts["without_value"] == 1 and counts["notes"] == [f"t2: {values[2].note}"]
    with pytest.raises(UserError, match="only 5 of 6 have a value"): valuation.choose(Context(tmp_path / "d"), texts, ctx.out, k=6)
    short = folder(tmp_path / "rows", rows=[TrainRow("t1", "", "x", "text")])
    with pytest.raises(UserError, match="features are of 6 rows and not of these 1"): valuation.value(Context(tmp_path / "e"), texts, "influence", rows=short, features=features, targets=[target])
