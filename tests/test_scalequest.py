"The ScaleQuest study through the command line at smoke size."
import os, subprocess
from pathlib import Path
import pytest
from toys import script

ROOT = Path(__file__).resolve().parent.parent

def run_smoke(home, *more):
    return subprocess.run([script("mathrepro"), "run", "scalequest", "--profile", "smoke", "--no-report", *more], cwd=ROOT, env={**os.environ, "MATHREPRO_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"},
                          capture_output=True, text=True, timeout=1200)

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from mathrepro.report import read_results
    home = tmp_path_factory.mktemp("home")
    done = run_smoke(home)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_results(home/"scalequest"/"smoke.ipynb")

def test_smoke_gives_every_claim_a_verdict(results):
    got = {v["id"]: v["verdict"] for v in results["claims"]}
    assert len(got) == 70 and set(got.values()) <= {"supported", "contradicted", "inconclusive", "not run"}
    assert all(got[v["id"]] == "not run" for v in results["claims"] if v["tier"] == "B" and v["id"] != "decontamination"), "smoke is too small for a verdict on training"
    assert got["decontamination"] in ("supported", "contradicted")

def test_smoke_compares_equal_rows(results):
    assert {"questions", "pairs", "duplicates", "filters", "scorer", "funnel", "reward", "selection", "arms", "comparisons", "scaling", "cost"} <= set(results)
    arms = {r["arm"]: r for r in results["arms"]["rows"]}
    assert {r["rows"] for a, r in arms.items() if a != "seeds, as many steps"} == {6} and arms["seeds, as many steps"]["steps"] == arms["ScaleQuest"]["steps"]
    funnel = {r["arm"]: r for r in results["funnel"]["rows"]}
    assert funnel["no filters"]["after the filters"] > funnel["ScaleQuest"]["after the filters"]

def test_bad_settings_are_one_line(tmp_path):
    for more, word in ((("-p", "generators=[world:s]"), "mixes two"), (("-p", "critic.engine=world-critik"), "critic.engine 'world-critik' is unknown")):
        done = run_smoke(tmp_path, *more)
        assert done.returncode == 2 and word in done.stderr and len([l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]) == 1, (more, done.stderr)
