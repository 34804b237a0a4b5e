"The MathScale study through its doors: the command line at smoke size, and its teacher behind a server."
import os, subprocess
from pathlib import Path
import pytest
from toys import script, served_engine

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["-p", "seeds=[0]", "-p", "side_seeds=[0]", "-p", "dial=[]", "-p", "size=8", "-p", "sizes=[4, 8]", "-p", "data.train.n=60", "-p", "data.narrow={}", "-p", "data.valid.n=8", "-p", "data.test.n=1", "-p", "workers=1"]

def run_smoke(home, *more):
    return subprocess.run([script("mathrepro"), "run", "mathscale", "--profile", "smoke", "--no-report", *more], cwd=ROOT, env={**os.environ, "MATHREPRO_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"},
                          capture_output=True, text=True, timeout=900)

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from mathrepro.report import read_results
    home = tmp_path_factory.mktemp("home")
    done = run_smoke(home)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_results(home/"mathscale"/"smoke.ipynb")

def test_smoke_gives_every_claim_a_verdict(results):
    got = {v["id"]: v["verdict"] for v in results["claims"]}
    assert len(got) == 54 and set(got.values()) <= {"supported", "contradicted", "inconclusive", "not run"}
    assert all(got[v["id"]] == "not run" for v in results["claims"] if v["tier"] == "B" and v["id"] != "decontamination"), "smoke is too small for a verdict on training"
    assert got["decontamination"] in ("supported", "contradicted") and got["audit-micro"] == "contradicted" and got["audit-icml-gain"] == "supported"

def test_smoke_compares_equal_rows(results):
    assert {"concepts", "communities", "funnel", "truth", "coverage", "diversity", "arms", "comparisons", "scaling", "levels", "dial", "averages", "checker"} <= set(results)
    arms = {r["arm"]: r for r in results["arms"]["rows"]}
    assert {r["rows"] for a, r in arms.items() if a not in ("32 rows", "seeds, as many steps")} == {24} and arms["seeds, as many steps"]["steps"] == arms["32 rows"]["steps"]
    truth = {r["arm"]: r for r in results["truth"]["rows"]}
    assert truth["0% wrong"]["solution right, %"]["estimate"] == 100 and truth["50% wrong"]["solution right, %"]["estimate"] < 75

@pytest.fixture
def served():
    with served_engine("world-teacher", "teacher") as server: yield server

def test_a_teacher_behind_a_server(served, tmp_path):
    settings = dict(engine="endpoint", base_url=f"http://127.0.0.1:{served.server_port}/v1", model="teacher")
    as_teacher = [a for who in ("teacher", "judge") for k, v in settings.items() for a in ("-p", f"{who}.{k}={v}")]
    done = run_smoke(tmp_path, *SMALL, *as_teacher)
    assert done.returncode == 0, done.stdout + done.stderr
    assert served.asked > 100

def test_bad_settings_are_one_line(tmp_path):
    for more, word in ((("-p", "sizes=[8, 4]"), "sizes must rise"), (("-p", "teacher.wrnog=0.5"), "wrong"),
                       (("-p", "concepts.min_count=100000"), "min_count"), (("-p", "teacher={malformed: 1.0, refused: 0.0}"), "could be read"),
                       (("-p", "teacher.engine=endpoint", "-p", "teacher.base_url=http://127.0.0.1:9/v1", "-p", "teacher.model=x"), "http://127.0.0.1:9/v1")):
        done = run_smoke(tmp_path, *SMALL, *more)
        assert done.returncode == 2 and word in done.stderr and len([l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]) == 1, (more, done.stderr)
