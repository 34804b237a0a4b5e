"The world's teacher behind stages: extraction in worker processes, killed and resumed, useless teachers, odd labels. Function-level tests are in nbs/26, 34c and 52a."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, extraction
from mathrepro.config import UserError
from mathrepro.engines.base import ENGINES, Completion, Usage, load_engine, register_engine
from mathrepro.engines.teacher import judge_question
from mathrepro.extraction import ConceptRow, LabelRow, read_records
from mathrepro.keys import file_hash
from mathrepro.prompts import question_request, read_question
from mathrepro.records import Problem, read_rows, write_table
from mathrepro.runs import Run
from mathrepro.workers import close_workers

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def pipeline(home, workers=0, n=400, shard=100, engine=(), **labels):
    run = Run("teacher", workers=workers, home=home, progress="quiet")
    seeds = run.stage("seeds", arms.load_problems, dataset="world", split="train", n=n)
    said = run.stage("extract", extraction.extract, problems=seeds, engine=dict(engine="world-teacher", **dict(engine)), temperature=0.7, shard=shard)
    return run, said, run.stage("labels", extraction.keep_labels, concepts=said, **labels)

def test_workers_and_shards_change_nothing(tmp_path):
    seen = []
    for workers, shard in ((0, 400), (1, 64)):
        run, said, kept = pipeline(tmp_path / str(workers), workers, shard=shard)
        run.compute()
        seen.append([file_hash(said.file("concepts.parquet")), *(file_hash(kept.file(f)) for f in ("records.parquet", "labels.parquet"))])
        assert next(r for r in run.ledger() if r["name"] == "extract")["tokens_out"] > 400 * 5
    assert seen[0] == seen[1]
    labels = read_rows(kept.file("labels.parquet"), LabelRow)
    assert all(r.kept == (r.count >= 2) == (r.reason == "") for r in labels) and {r.kept for r in labels} == {True, False}

def test_killed_extraction_goes_on(tmp_path):
    run, said, _ = pipeline(tmp_path / "calm", n=2000, shard=20); run.compute([said])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_teacher as t; run, said, _ = t.pipeline({str(tmp_path / 'killed')!r}, n=2000, shard=20); run.compute([said])"
    p = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/work/*/out/replies-*"))) < 5 and p.poll() is None and time.monotonic() < deadline: time.sleep(0.002)
    p.send_signal(signal.SIGKILL); p.wait()
    again, resumed, _ = pipeline(tmp_path / "killed", n=2000, shard=20); again.compute([resumed])
    assert file_hash(said.file("concepts.parquet")) == file_hash(resumed.file("concepts.parquet"))
    assert next(r for r in again.ledger() if r["name"] == "extract")["sessions"] > 1, "it was killed half-way"

def test_a_useless_teacher_is_asked_once(tmp_path):
    for _ in range(2):   # the second time the kept replies are judged, nobody is asked
        run, said, _ = pipeline(tmp_path, n=200, shard=50, engine=dict(refused=1.0, malformed=0.0))
        with pytest.raises(UserError, match=r"extract.*0 of 100 could be read.*'refused' \(100 times\).*read them in ") as e: run.compute([said])
        assert "\n" not in str(e.value)
        found = sorted(tmp_path.glob("work/*/out/replies-*.parquet"))
        assert len(found) == 2 and all(r.reply and r.reason == "refused" for f in found for r in read_rows(f, ConceptRow))

ODD = ["数学", "e\u0301tude", "👩‍👩‍👧", "\u202ertl", "a\u00a0b", "λ → ∞", "\\frac{1}{2}", "it's \"so\""]

class OddTeacher:
    "Engine whose every reply holds labels in odd Unicode, a lone surrogate among them."
    def __init__(self, model="odd"): self.usage = Usage()
    def generate(self, prompts, n=1, **how): return [Completion(i, 0, json.dumps(dict(topics=["数学"], knowledge_points=[ODD[i % 8], "x\ud800"])), "stop", 1, 1) for i in range(len(prompts))]
    def close(self): pass

def test_odd_labels_survive(tmp_path):
    register_engine("odd", "test_teacher:OddTeacher")
    try:
        run = Run("odd", workers=0, home=tmp_path, progress="quiet")
        seeds = run.stage("seeds", arms.load_problems, dataset="world", split="train", n=16)
        kept = run.stage("labels", extraction.keep_labels, concepts=run.stage("extract", extraction.extract, problems=seeds, engine=dict(engine="odd")))
        run.compute()
    finally: ENGINES.pop("odd")
    records = read_records(kept.path)
    assert {r["knowledge_points"][0] for r in records} >= set(ODD) and all(r["knowledge_points"][-1] == "x?" and r["topics"] == ["数学"] for r in records)

def test_no_seeds(tmp_path):
    write_table(tmp_path / "problems.parquet", [], Problem)
    from mathrepro.workers import Context
    with pytest.raises(UserError, match="seed set is empty"): extraction.extract(Context(tmp_path / "stage"), tmp_path, dict(engine="world-teacher"))

def test_dials_reach_the_questions(tmp_path):
    "Compositions from one problem can be used whole; the declared error rate is the measured one, at 0, 26 % and 100 %."
    rows = read_rows(pipeline(tmp_path)[0].compute([pipeline(tmp_path)[1]])[0].path / "concepts.parquet", ConceptRow)
    asks = [question_request(json.loads(r.topics), json.loads(r.knowledge_points)) for r in rows if r.ok]
    for wrong in (0.0, 0.26, 1.0):
        teacher = load_engine(dict(engine="world-teacher", wrong=wrong, refused=0.0, malformed=0.0, off_concept=0.0))
        value = [read_question(c.text).value for c in teacher.generate(asks, temperature=1.0, max_new_tokens=512)]
        truth = [judge_question(v["problem"], v["solution"]) for v in value]
        assert all(t["answerable"] for t in truth) and abs(sum(not t["right"] for t in truth)/len(truth) - wrong) < 0.08
    teacher = load_engine(dict(engine="world-teacher", wrong=0.0, refused=0.0, malformed=0.0, off_concept=0.0))
    used = [judge_question(v["problem"], v["solution"], json.loads(r.knowledge_points))["on_concept"] for r, c in zip([r for r in rows if r.ok], teacher.generate(asks)) if (v := read_question(c.text).value)]
    assert sum(used)/len(used) > 0.9   # the rest are hallucinated labels of no meaning, and lengths without numbers
