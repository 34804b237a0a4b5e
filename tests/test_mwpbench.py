"MWPBench through files, stages, graders and averages; the world's levels through a run. Real files are read from $MATHREPRO_DATA; without it those tests are skipped, visibly."
import json, os
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
from mathrepro import claims, datasets, levels, mwpbench
from mathrepro.config import UserError
from mathrepro.evaluate import score_samples
from mathrepro.graders import GRADERS, strict
from mathrepro.records import Problem, Sample, Score, read_rows, write_table
from mathrepro.runs import Run
from mathrepro.stats import paired_difference

real = pytest.mark.skipif(not os.environ.get("MATHREPRO_DATA"), reason="MATHREPRO_DATA is not set: real benchmark files not at hand")

def need(name, split="test"):
    if not datasets.locate(name, split): pytest.skip(f"{name} {split} is not in MATHREPRO_DATA")

def row(topic, i, **more):
    return {"data_source": topic, "question_number": f"{topic}.{i}", "question": f"Question {i} of {topic}: what is {i}+1?", "answer": str(i + 1), "license": "", "data_topic": topic, **more}

@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MATHREPRO_DATA", str(tmp_path)); (tmp_path / "mwpbench").mkdir()
    return tmp_path

# --- files

def test_one_file_serves_all_parts_and_a_parts_own_file_comes_first(root):
    rows = [row("tal", i) for i in range(3)] + [row("gsm8k", i) for i in range(2)] + [row("MATH.Algebra", 1), row("college_math.calculus", 2), row("MATH.Geometry", 3)]
    (root / "mwpbench/full_test.json").write_text("\n".join(map(json.dumps, rows)))
    assert [len(mwpbench.load_part(p, strict=False)) for p in ("tal-scq", "gsm8k", "math", "college-math")] == [3, 2, 2, 1]
    (root / "mwpbench/tal-scq").mkdir(); (root / "mwpbench/tal-scq/test.jsonl").write_text(json.dumps(row("tal", 9)) + "\n")
    (p,) = mwpbench.load_part("tal-scq", strict=False)
    assert p.answer == "10" and p.source == "tal-scq" and mwpbench.to_row(p) == row("tal", 9)
    found = {(s["part"], s["split"]): s["found"] for s in mwpbench.status()}
    assert found["tal-scq", "test"] == found["gsm8k", "test"] == "file" and found["gsm8k", "train"] == found["fresh-gaokao", "test"] == "missing"
    with pytest.raises(UserError, match=r"1 rows of TAL-SCQ, the paper prints 1,496"): mwpbench.load_part("tal-scq")
    with pytest.raises(UserError, match="no train rows"): mwpbench.load_part("agieval-sat", "train")
    with pytest.raises(UserError, match="did you mean tal-scq"): mwpbench.load_part("tal-scp")

@pytest.mark.parametrize("text,says", [
    (json.dumps(row("tal", 1)) + "\n" + json.dumps({k: v for k, v in row("tal", 2).items() if k != "license"}) + "\n", r"test\.jsonl, line 2: no license; an MWPBench row has"),
    (json.dumps(row("tal", 1)) + "\n" + json.dumps(row("tal", 2))[:-9] + "\n", r"test\.jsonl, line 2: not a JSON object"),
    (json.dumps(row("tal", 1, answer="")), r"test\.jsonl, line 1: answer is ''; it must be text"),
    (json.dumps(row("tal", 1, question=None)), r"line 1: question is None"),
    ("", r"test\.jsonl is empty"),
    (json.dumps([row("tal", 1), 7], indent=0), r"line 10: a int where an object is needed")])
def test_a_bad_row_is_one_line_with_file_and_line(root, text, says):
    (root / "mwpbench/tal-scq").mkdir(); (root / "mwpbench/tal-scq/test.jsonl").write_text(text)
    with pytest.raises(UserError, match=says) as e: mwpbench.load_part("tal-scq")
    assert "\n" not in str(e.value)

def test_missing_file_names_the_places(root):
    with pytest.raises(UserError, match=r"mwpbench/ape210k/test\.jsonl.*mwpbench/full_test\.json"): mwpbench.load_part("ape210k")

def test_overlapping_parts_through_one_stage_and_both_averages(root, tmp_path):
    same = {"question": "What is 1+1?", "answer": "2"}
    rows = [row("MATH.Algebra", i) for i in range(3)] + [row("MATH.Geometry", 1, **same), row("agieval.math", 1, **same)] + [row("tal", i) for i in range(4)]
    (root / "mwpbench/full_test.json").write_text("\n".join(map(json.dumps, rows)))
    for p in ("math", "agieval-math", "tal-scq"): assert mwpbench.load_part(p, strict=False)
    ctx = SimpleNamespace(out=tmp_path)
    with pytest.raises(UserError, match="the paper prints"): mwpbench.load_sets(ctx, "mwpbench:tal-scq", "test")
    with pytest.raises(UserError, match="has no row of Ape210k"): mwpbench.load_part("ape210k", strict=False)
    problems = [p for name in ("math", "agieval-math", "tal-scq") for p in mwpbench.load_part(name, strict=False)]
    problems = [Problem(f"{p.source}/{p.id}", p.problem, p.solution, p.answer, p.source, p.split, p.meta) for p in problems]
    samples = [Sample(p.id, 0, "", f"The answer is {p.answer if p.source != 'tal-scq' else 0}.", 0, "m", 0.0, "stop", 1) for p in problems]
    scores = mwpbench.task_scores(score_samples(samples, problems, mwpbench.released_judge), problems)
    assert scores == {"MATH.Algebra": [1, 1, 1], "MATH.Geometry": [1], "agieval.math": [1], "tal": [0] * 4}
    paper, code = mwpbench.averages(scores), mwpbench.averages(scores, "code")
    assert (paper.micro, paper.macro, paper.items) == (5 / 9, 2 / 3, 9) and (code.micro, code.macro, code.divisor) == (5 / 9, 2 / 4, 4)
    assert any("count twice" in n for n in paper.notes) and any("CollegeMath was not run" in n for n in code.notes)
    pairs = {(r["set"], r["other"]): r["equal"] for r in mwpbench.overlaps(mwpbench.sets_at_hand())}
    assert pairs["AGIEval-Math test", "MATH test"] == pairs["MATH test", "AGIEval-Math test"] == 1 and pairs["TAL-SCQ test", "MATH test"] == 0

@real
def test_gsm8k_and_math_come_through_the_registry():
    need("gsm8k"); need("math")
    gsm, math = mwpbench.load_part("gsm8k"), mwpbench.load_part("math")
    assert (len(gsm), len(math)) == (1319, 5000) and {mwpbench.topic_of(p) for p in math} == set(mwpbench.MATH_TOPICS)
    assert mwpbench.checked(mwpbench.to_row(gsm[0]), "here")["data_topic"] == "gsm8k"
    assert max(sum(mwpbench.topic_of(p) == t for p in math) for t in mwpbench.MATH_TOPICS) < mwpbench.CAP     # so that the cap cannot touch MATH

# --- the released check

@real
def test_released_check_against_ours_on_gsm8k():
    need("gsm8k")
    golds = [p.answer for p in mwpbench.load_part("gsm8k")]
    by = {name: {r["case"]: r for r in mwpbench.checker_audit(golds, g)} for name, g in (("released", mwpbench.released), ("ours", strict))}
    row = by["released"]["thousands commas and .00"]
    assert (row["failed"], row["items"]) == (131, 131) and by["released"]["gold as it is"]["failed"] == 0
    assert not any(r["failed"] for r in by["ours"].values())

@real
def test_formulas_in_dollar_signs_take_the_substring_branch():
    need("math")
    golds = mwpbench.audit_golds()
    name = next(n for n in golds if "…" in n or n == "CollegeMath")
    rows = {r["case"]: r for r in mwpbench.checker_audit(golds[name])}
    assert rows["sign changed"]["failed"] > 500 and rows["+1 at the end"]["failed"] > 1000

def test_the_check_never_raises_on_model_text():
    for text in ("", "is", "\\boxed{", "\\boxed{\\frac", "answer is \\sqrt", "answer is \\text{ a } \\text{ b }", "$" * 50, "answer is " + "{" * 1000, "١٢ is ٣", "1e999 is nan"):
        for gold in ("3", "$x$", "\\text{ a } \\text{ b }", "\\frac", "", "inf"): assert mwpbench.released_judge(text, gold)[0] in ("right", "wrong", "no answer")

# --- levels through a run

def test_world_benchmark_is_a_stage_and_scores_come_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MATHREPRO_HOME", str(tmp_path))
    run = Run("levels", workers=1, threads=1)
    stage = run.stage("test", levels.world_benchmark, n=20, levels=["elementary", "college", "large numbers"], seed=3)
    run.compute([stage])
    problems = read_rows(stage.path / "problems.parquet", Problem)
    assert len(problems) == 60 and list(stage.json("levels.json")) == ["elementary", "college", "large numbers"]
    level = mwpbench.level_names(stage)
    def answers(right):
        "What `solve` leaves behind, for a model that is right on these levels."
        texts = [f"#### {p.answer if level[p.id] in right else 'none'}" for p in problems]
        scores = score_samples([Sample(p.id, 0, "", t, 0, "m", 0.0, "stop", 1) for p, t in zip(problems, texts)], problems, "hash")
        import pandas as pd
        return SimpleNamespace(table=lambda name: pd.DataFrame([{c: getattr(s, c) for c in Score.__slots__} for s in scores]))
    a, b = [answers({"elementary"})] * 3, [answers({"elementary", "college"})] * 3
    inside = mwpbench.level_scores(b, stage, "in-domain")
    assert inside.shape == (3, 40) and inside.mean() == 1 and mwpbench.level_scores(b, stage, "out-of-range").mean() == 0
    d = paired_difference(inside, mwpbench.level_scores(a, stage, "in-domain"))
    assert abs(d.estimate - .5) < 1e-9 and d.items == 40
    with pytest.raises(UserError, match="no level"): mwpbench.level_scores(a, stage, ["colledge"])

def test_a_level_too_narrow_is_one_line(tmp_path):
    with pytest.raises(UserError, match="level 'x': only 0 different problems found, 5 wanted"):
        levels.world_benchmark(SimpleNamespace(out=tmp_path), n=5, levels={"x": {"steps": [1, 1], "topics": 3}})
    with pytest.raises(UserError, match="wanted is a number for each of"): levels.world_benchmark(SimpleNamespace(out=tmp_path), n={"elementary": 5}, levels=["college"])

# --- the published record

def test_the_audits_fit_the_claims_and_say_what_is_missing(tmp_path, monkeypatch):
    from mathrepro.papers import mathscale_audit as mathscale
    monkeypatch.setenv("MATHREPRO_DATA", str(tmp_path)); monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = []
    evidence = mathscale.audits("smoke", said.append)
    stated = claims.load_claims(Path(__file__).parents[1] / "params/mathscale/claims.yaml")
    verdicts = {v.claim: v.verdict for v in claims.decide(stated, evidence)}
    missing = {e.claim for e in evidence if e.not_run}
    assert {"audit-checker-accepts", "audit-checker-rejects", "audit-stop-words", "audit-agieval-overlap", "audit-train-test"} <= missing and len(said) == len(missing)
    assert verdicts["audit-relative-gain"] == verdicts["audit-best-llama"] == "supported" and verdicts["audit-best-mistral"] == verdicts["audit-micro"] == "contradicted"
    audits = {c.id for c in stated if c.kind == "audit" and c.tier == "A"}
    assert {e.claim for e in evidence} == audits
