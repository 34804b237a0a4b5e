"From seeds to training rows as stages: workers, shards, kills, copies, test questions, bad input. Function-level tests are in nbs/54 and 54a."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, extraction, filters, questions
from mathrepro.config import UserError
from mathrepro.engines.teacher import judge_question
from mathrepro.extraction import RecordRow
from mathrepro.keys import file_hash
from mathrepro.questions import CleanedQuestion, Composition, Question, read_questions
from mathrepro.records import Problem, read_rows, write_table
from mathrepro.runs import Run
from mathrepro.traces import coverage, diversity, heldout_pairs, lineage
from mathrepro.workers import close_workers

TEACHER = dict(engine="world-teacher", wrong=0.3, near_copy=0.2)

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def labelled(run, n=400):
    "Stages: seeds, test problems, labelled seeds."
    seeds, test = (run.stage(s, arms.load_problems, dataset="world", split=s, n=k) for s, k in (("train", n), ("test", 200)))
    said = run.stage("extract", extraction.extract, problems=seeds, engine=TEACHER, temperature=0.7)
    return seeds, test, run.stage("labels", extraction.keep_labels, concepts=said)

def chain(home, workers=0, n=400, shard=100, engine=TEACHER, how="graph"):
    "run and its stages by name."
    run = Run("questions", workers=workers, home=home, progress="quiet")
    seeds, test, labels = labelled(run)
    s = dict(seeds=seeds, test=test, compose=run.stage("compose", questions.compose, concepts=labels, n=n, shots=2, how=how))
    s["synthesise"] = run.stage("synthesise", questions.synthesise, compositions=s["compose"], problems=seeds, engine=engine, shots=1, shard=shard, keep_prompt=True)
    s["validate"] = run.stage("validate", questions.validate, questions=s["synthesise"], engine=dict(TEACHER, false_accept=0.0, wrong_correction=0.0), share=0.5, shard=shard)
    s["clean"] = run.stage("clean", questions.clean, questions=s["validate"], references=[test], seeds=seeds, add_seeds=True, threshold=0.9)
    s["subset"] = run.stage("subset", questions.subset, rows=s["clean"], n=100)
    return run, s

FILES = dict(compose="compositions.parquet", clean="questions.parquet", subset="rows.parquet")

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = chain(tmp_path_factory.mktemp("done"))
    run.compute()
    return run, s

def test_workers_and_shards_change_nothing(done, tmp_path):
    run, s = chain(tmp_path, workers=2, shard=64)
    run.compute()
    assert [file_hash(s[k].file(f)) for k, f in FILES.items()] == [file_hash(done[1][k].file(f)) for k, f in FILES.items()]
    cost = next(r for r in run.ledger() if r["name"] == "synthesise")
    assert cost["tokens_in"] > cost["tokens_out"] > 400 * 5

def test_every_reply_is_accounted_for(done):
    s = done[1]
    made, cleaned = s["synthesise"].json("counts.json"), read_rows(s["clean"].file("questions.parquet"), CleanedQuestion)
    compositions = read_rows(s["compose"].file("compositions.parquet"), Composition)
    assert made["replies"] == made["requests"] == len(cleaned) == len(compositions) == 400 and made["ok"] + sum(made["reasons"].values()) == 400
    assert [q.composition for q in cleaned] == [c.id for c in compositions] and len({q.id for q in cleaned}) == 400
    counts, rows = s["clean"].json("counts.json"), read_rows(s["clean"].file("rows.parquet"), arms.TrainRow)
    assert counts["kept"] + sum(counts["reasons"].values()) == 400 and counts["rows"] == len(rows) == 400 + counts["kept"]
    assert [r.problem_id for r in rows if r.origin == "sampled"] == [q.id for q in cleaned if q.kept] and all(bool(q.why) != q.kept for q in cleaned)
    assert {q.why for q in cleaned} >= {"refused", "exact copy of a seed"}, counts["reasons"]
    chosen = read_rows(s["subset"].file("rows.parquet"), arms.TrainRow)
    assert len(chosen) == 100 and set(chosen) <= set(rows)

def test_validation_repairs_its_share(done):
    before, after = read_questions(done[1]["synthesise"].path), read_questions(done[1]["validate"].path)
    counts = done[1]["validate"].json("counts.json")
    wrong = {q.id for q in before if q.ok and not judge_question(q.problem, q.solution)["right"]}
    assert {q.id for q in after if q.judged == "wrong"} >= wrong - {q.id for q in after if q.judged == "no verdict"}
    replaced = [q for q in after if q.first_solution]
    assert counts["replaced"] == len(replaced) and 0.3 < len(replaced) / counts["wrong"] < 0.7
    assert all(judge_question(q.problem, q.solution)["right"] for q in replaced if q.id in wrong)
    assert all((a.problem, a.first_solution or a.solution) == (b.problem, b.solution) for a, b in zip(after, before))

def test_a_row_can_be_traced(done):
    s = done[1]
    q = next(q for q in read_rows(s["clean"].file("questions.parquet"), CleanedQuestion) if q.kept and q.first_solution)
    l = lineage([s["clean"], s["seeds"], s["compose"]], q.id)
    text = str(l)
    assert l.row == q and len(l.examples) == 1 and l.examples[0]["problem"] in q.prompt
    for part in (q.id, q.composition, "world-teacher", l.examples[0]["id"], "solution replaced", q.solution.splitlines()[-1]): assert part in text
    copy = next(q for q in read_rows(s["clean"].file("questions.parquet"), CleanedQuestion) if "copy" in q.why)
    assert "rejected: " in str(lineage(s["clean"], copy.id)) and copy.other in str(lineage(s["clean"], copy.id))
    with pytest.raises(UserError, match="no row 'nothing'"): lineage(s["clean"], "nothing")
    seed = read_rows(s["seeds"].file("problems.parquet"), Problem)[0].id
    with pytest.raises(UserError, match="is a seed problem"): lineage(s["clean"], seed)

def test_test_questions_are_found(done, tmp_path):
    s, run = done[1], Run("planted", workers=0, home=tmp_path, progress="quiet")
    test = read_rows(s["test"].file("problems.parquet"), Problem)
    made = [q for q in read_questions(s["synthesise"].path) if q.ok]
    from dataclasses import replace
    long = [t for t in test if len(t.problem.split()) > 25][:20]
    planted = [replace(q, problem=f"Listen. {t.problem} Thank you.") for q, t in zip(made, long)]
    folder = tmp_path / "in"; folder.mkdir()
    write_table(folder / "questions-00000.parquet", planted + made[20:40], Question)
    class ctx: out = tmp_path / "out"; progress = staticmethod(lambda steps, *a: steps)
    ctx.out.mkdir()
    questions.clean(ctx, folder, [s["test"].path])
    rows = read_rows(ctx.out / "questions.parquet", CleanedQuestion)
    assert [(q.why, q.other) for q in rows[:20]] == [("contaminated (n-gram)", t.id) for t in long] and all(q.shared in " ".join(filters.words(q.problem)) for q in rows[:20])
    assert sum(q.kept for q in rows[20:]) >= 15

def test_killed_synthesis_goes_on(done, tmp_path):
    run, s = chain(tmp_path / "calm", n=1500, shard=15); run.compute([s["synthesise"]])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_questions as t; run, s = t.chain({str(tmp_path / 'killed')!r}, n=1500, shard=15); run.compute([s['synthesise']])"
    p = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/work/*/out/questions-*"))) < 5 and p.poll() is None and time.monotonic() < deadline: time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -9, "it was killed while it ran"
    again, resumed = chain(tmp_path / "killed", n=1500, shard=15); again.compute([resumed["synthesise"]])
    hashes = lambda stage: {f.name: file_hash(f) for f in sorted(stage.path.glob("*")) if f.suffix == ".parquet" or f.name == "counts.json"}
    assert hashes(resumed["synthesise"]) == hashes(s["synthesise"]) and len(hashes(s["synthesise"])) == 101
    assert next(r for r in again.ledger() if r["name"] == "synthesise")["sessions"] > 1

def test_useless_teachers(done, tmp_path):
    for engine, reason in ((dict(refused=1.0, malformed=0.0), "refused"), (dict(malformed=1.0, refused=0.0), "")):
        run, s = chain(tmp_path, n=400, shard=100, engine=dict(TEACHER, **engine))
        with pytest.raises(UserError, match=rf"synthesise.*none of 200 replies can be used; most often \(\d+\): {reason}") as e: run.compute([s["synthesise"]])
        assert "\n" not in str(e.value) and len(list(tmp_path.glob("work/*/out/questions-*.parquet"))) >= 2

def test_concept_pairs(done):
    s = done[1]
    seeds, test = (read_rows(s[k].file("problems.parquet"), Problem) for k in ("seeds", "test"))
    truth = [[dict(id=p.id, problem=p.problem, **extraction.world_truth(p)) for p in rows] for rows in (seeds, test)]
    held = heldout_pairs(*truth)
    made = [q for q in read_rows(s["clean"].file("questions.parquet"), CleanedQuestion) if q.kept]
    found = coverage(made, held, truth="world")
    assert held and 0 < found["share"] < 1 and found["unread"] == 0 == coverage(truth[0], held)["covered"]
    d = diversity(made)
    assert d["rows"] == d["problems"] == len(made) and 0 < d["distinct_1"] < d["distinct_3"] < 1 and d["point_sets"] > 100

@pytest.mark.parametrize("how", ["uniform", "shuffled"])
def test_controls_have_the_same_sizes(done, tmp_path, how):
    run, s = chain(tmp_path, how=how); run.compute([s["compose"]])
    rows, plain = (read_rows(x["compose"].file("compositions.parquet"), Composition) for x in (s, done[1]))
    assert len({r.id for r in rows}) == 400 and s["compose"].json("graph.json")["how"] == how
    mean = lambda rows: sum(len(json.loads(r.knowledge_points)) for r in rows) / len(rows)
    assert abs(mean(rows) - mean(plain)) < 0.3 and {r.id for r in rows} != {r.id for r in plain}
    assert s["compose"].json("graph.json")["mean_jaccard"] < done[1]["compose"].json("graph.json")["mean_jaccard"]

def folder_with(path, name, rows, kind):
    path.mkdir(exist_ok=True); write_table(path / name, rows, kind)
    return path

def test_bad_input(done, tmp_path):
    s = done[1]
    class ctx: out = tmp_path; progress = staticmethod(lambda steps, *a: steps); shards = staticmethod(lambda n, size, name: [(0, 0, n, tmp_path / f"{name}-00000.parquet")])
    one = folder_with(tmp_path / "one", "records.parquet", [RecordRow("a", '["t"]', '["k"]')], RecordRow)
    with pytest.raises(UserError, match="1 labelled seed question; a concept graph needs at least 2"): questions.compose(ctx, one, 10)
    bad = folder_with(tmp_path / "bad", "records.parquet", [RecordRow("a", '["t"]', '["k"]'), RecordRow("b", '["t"]', '["k"')], RecordRow)
    with pytest.raises(UserError, match=r"records.parquet, row 1: knowledge_points is not a JSON list"): questions.compose(ctx, bad, 10)
    with pytest.raises(UserError, match="neither records.parquet nor concepts.parquet"): questions.compose(ctx, tmp_path / "none", 10)
    with pytest.raises(UserError, match="how='walk' is unknown; choose one of graph, shuffled, uniform, frequency"): questions.compose(ctx, s["compose"].path, 10, how="walk")
    two = folder_with(tmp_path / "two", "records.parquet", [RecordRow(i, '["t"]', '["k", "l"]') for i in "ab"], RecordRow)
    with pytest.raises(UserError, match="3 different compositions found .* fewer than the 50 asked for"): questions.compose(ctx, two, 50)
    apart = folder_with(tmp_path / "apart", "records.parquet", [RecordRow(i, *x) for i, x in zip("abcd", [('["t"]', "[]"), ("[]", '["k"]')] * 2)], RecordRow)
    with pytest.raises(UserError, match="no edge joins a topic to a knowledge point"): questions.compose(ctx, apart, 5)
    with pytest.raises(UserError, match="keep: 'seeds' is unknown"): questions.compose(ctx, two, 2, keep=dict(seeds=0.5))
    lost = folder_with(tmp_path / "lost", "compositions.parquet", [Composition("c", '["t"]', '["k"]', '["nobody"]', "[0.5]", False)], Composition)
    folder_with(lost, "records.parquet", [RecordRow("a", '["t"]', '["k"]')], RecordRow)
    with pytest.raises(UserError, match="row 0: the seed question 'nobody' is not among the problems"): questions.synthesise(ctx, lost, s["seeds"].path, TEACHER)
    empty = folder_with(tmp_path / "empty", "compositions.parquet", [Composition("c", "[]", "[]", "[]", "[]", False)], Composition)
    folder_with(empty, "records.parquet", [RecordRow("a", '["t"]', '["k"]')], RecordRow)
    with pytest.raises(UserError, match="row 0: neither topics nor knowledge points"): questions.synthesise(ctx, empty, s["seeds"].path, TEACHER)
    with pytest.raises(UserError, match="run the stage synthesise first"): questions.clean(ctx, tmp_path / "none", [])
    damaged = tmp_path / "damaged"; damaged.mkdir()
    (damaged / "questions-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="is damaged or not Parquet"): questions.clean(ctx, damaged, [])
    with pytest.raises(UserError, match=r"\d+ rows wanted, but only \d+ of 400"): questions.clean(ctx, s["synthesise"].path, [s["test"].path], rows=399)
    with pytest.raises(UserError, match="no question is left of 400"): questions.clean(ctx, s["synthesise"].path, [s["test"].path], ngram=1)
    with pytest.raises(UserError, match="5000 rows wanted"): questions.subset(ctx, s["clean"].path, 5000)
    with pytest.raises(UserError, match="action='repair'"): questions.validate(ctx, s["synthesise"].path, TEACHER, action="repair")
