"The audit of JiuZhang3.0 across modules: what is stated, what is found, what happens without files, and a released-like sample in a data folder."
import json, shutil
from pathlib import Path
import pytest
from mathrepro import claims
from mathrepro.config import load_yaml, resource
from mathrepro.papers import jiuzhang_audit as audit
from mathrepro.world.programs import tool_solution

PROBLEM = "Leo has 17 keys. The keys become twice as many. Leo finds 3 more keys. How many keys are there in the end?"
MECHANISMS = {"influence-over-random", "influence-over-bm25", "influence-over-loss", "influence-over-length", "precision-over-random", "precision-over-bm25", "boosted-over-initial", "boosted-over-more-random", "synthesis-over-teacher-per-cost",
              "synthesis-equals-teacher-per-row", "mixture-over-nl", "mixture-over-tool", "tool-over-nl", "executed-over-unfiltered", "one-run-over-shuffled", "stage-fidelity"}

def stated(): return claims.load_claims(resource("params", "jiuzhang/claims.yaml"))

def verdicts(found): return {v.claim: v for v in claims.decide(stated(), found)}

def test_rules_are_stated_for_every_mechanism():
    own = {c.id: c for c in stated()}
    assert MECHANISMS <= {c.id for c in own.values() if c.tier == "B"}
    assert all(own[m].control and own[m].kind in ("difference", "equivalence") and own[m].profile_scope == ("cpu", "gpu", "paper") for m in MECHANISMS)
    assert all(c.kind == "not run" and c.cost for c in own.values() if c.tier == "C")

def test_every_number_has_a_source():
    r = audit.reported()
    def walk(x):
        if isinstance(x, dict):
            if "source" in x and "verified" in x: yield x
            for v in x.values(): yield from walk(v)
        elif isinstance(x, list):
            for v in x: yield from walk(v)
    found = list(walk(r))
    assert len(found) > 30 and all(isinstance(x["verified"], bool) and (x["source"] in r["sources"] or not x["verified"]) for x in found)
    assert not r["numbers"]["cost"]["verified"] and not r["earlier"]["verified"]

def test_without_files_nothing_is_claimed(monkeypatch):
    monkeypatch.delenv("MATHREPRO_DATA", raising=False)
    said = []
    got = verdicts(audit.audits("cpu", say=said.append))
    assert {c for c in audit.NEED_FILES if got[c].verdict == "not run"} == set(audit.NEED_FILES) and len(said) == len(audit.NEED_FILES)
    assert got["audit-averages"].verdict == "contradicted" and "MAmmoTH2-7B-Plus" in got["audit-averages"].explanation and got["audit-calls"].verdict == got["audit-less-storage"].verdict == "supported"

def test_a_sample_in_the_data_folder_is_replayed(tmp_path, monkeypatch):
    from mathrepro.datasets import data_root
    folder, real = tmp_path/"jiuzhang", data_root()
    folder.mkdir()
    rows = [{"input": f"## Question\n{PROBLEM}", "output": tool_solution(PROBLEM, **more)} for more in ({}, {"wrong_output": 40})]
    for name in ("pt_tool", "sft"): (folder/audit.SAMPLES[name]).write_text("".join(json.dumps(r) + "\n" for r in (rows if name == "pt_tool" else rows[:1])))
    if real and (real/"gsm8k").is_dir():
        shutil.copytree(real/"gsm8k", tmp_path/"gsm8k")
        test = json.loads((tmp_path/"gsm8k"/"test.jsonl").read_text().splitlines()[0])["question"]
        (folder/audit.SAMPLES["pt_cot"]).write_text(json.dumps({"input": test, "output": "#### 18"}) + "\n")
    monkeypatch.setenv("MATHREPRO_DATA", str(tmp_path))
    got = verdicts(audit.audits("cpu", say=lambda line: None))
    assert got["audit-pt-tool-outputs"].verdict == "contradicted" and "1 of 2" in got["audit-pt-tool-outputs"].explanation and got["audit-sft-outputs"].verdict == "supported"
    assert got["audit-tora-outputs"].verdict == "not run" and got["audit-contamination"].verdict == ("contradicted" if real else "not run")

def test_profiles_have_the_same_keys():
    found = {p.stem: set(load_yaml(p)[0]) for p in Path(resource("params", "jiuzhang/claims.yaml")).parent.glob("*.yaml") if p.stem != "claims"}
    assert {"gpu", "paper"} <= set(found) and len({frozenset(k) for k in found.values()}) == 1, found

@pytest.mark.parametrize("more, word", [({}, "everything, with all students"), ({"first": 10_600}, "10.6K")])
def test_plan_stands_beside_the_amount_that_is_said(more, word):
    from mathrepro.plan import plan_of, plan_text
    text = plan_text(plan_of("jiuzhang", more, "paper"))
    assert word in text and "8,480" in text and "not verified" in text and "ours, after LESS" in text
