"The JiuZhang3.0 study through the command line: at smoke size, and the path of the profile gpu on real questions with its author behind a server."
import os, subprocess
from pathlib import Path
import pytest
from toys import script, served_engine

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("MATHREPRO_DATA", "/nowhere"))/"gsm8k"/"train.jsonl"

def run(home, profile, *more):
    return subprocess.run([script("mathrepro"), "run", "jiuzhang", "--profile", profile, "--no-report", *more], cwd=ROOT, env={**os.environ, "MATHREPRO_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""},
                          capture_output=True, text=True, timeout=1200)

@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from mathrepro.report import read_results
    home = tmp_path_factory.mktemp("home")
    done = run(home, "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return read_results(home/"jiuzhang"/"smoke.ipynb")

def test_smoke_gives_every_claim_a_verdict(results):
    got = {v["id"]: v["verdict"] for v in results["claims"]}
    assert len(got) == 47 and set(got.values()) <= {"supported", "contradicted", "inconclusive", "not run"}
    assert all(got[v["id"]] == "not run" for v in results["claims"] if v["tier"] == "B" and v["id"] != "decontamination"), "smoke is too small for a verdict on training"
    assert got["decontamination"] in ("supported", "contradicted") and got["audit-averages"] == "contradicted" and got["audit-calls"] == "supported"

def test_smoke_compares_equal_rows(results):
    assert {"selection", "arms", "choices", "writers", "filters", "boosts", "price", "outputs", "general", "calls", "mixtures", "graders"} <= set(results)
    rows = {r["arm"]: r["rows"] for r in results["arms"]["rows"]}
    assert {n for a, n in rows.items() if "price" not in a and "of the model" not in a} == {8} and rows["12 rows of the model"] == 12
    assert {r["rows"] for r in results["general"]["rows"] if r["arm"] not in ("in turn", "shuffled")} == {8}

def test_smoke_runs_programs(results):
    shares = {r["the program's output"]: r["rows"] for r in results["outputs"]["rows"]}
    assert shares["the program prints something else"] > 10 and shares["the recorded output is the real one"] > 10
    assert [r["answers"] for r in results["calls"]["rows"]] == [12]*3      # eight rows teach nobody to call one; tests/test_tools.py has a student that does

@pytest.mark.skipif(not REAL.exists(), reason="GSM8K is not at hand ($MATHREPRO_DATA)")
def test_path_of_the_gpu_profile_on_real_questions(tmp_path):
    small = dict(device="cpu", seeds="[0]", workers=2, threads=1, base="world:s", first=48, k=8, size=6, mass=8, **{"texts.n": 60, "texts.options.characters": 90, "data.train.n": 12, "data.examples.n": 8, "data.test.n": 6, "data.general.n": 6, "max_new_tokens": 32,
                 "draw.max_new_tokens": 160, "draw.temperature": 0.5, "writer.epochs": 5, "writer.batch_size": 4, "writer.learning_rate": 1e-3, "writer.max_length": 384, "sft.epochs": 1, "sft.batch_size": 4, "sft.max_length": 384, "sft.dtype": "float32", "template": "plain",
                 "tool.template": "plain", "tool.max_new_tokens": 32, "engine.engine": "transformers", "engine.dtype": "float32", "influence.warm.epochs": 1, "influence.warm.fraction": 1.0, "influence.warm.batch_size": 4, "influence.warm.dtype": "float32", "influence.warm.max_length": 384,
                 "influence.features.dtype": "float32", "influence.features.max_length": 384})
    with served_engine("world-author", "author") as server:
        settings = [a for k, v in {**small, "author.base_url": f"http://127.0.0.1:{server.server_port}/v1"}.items() for a in ("-p", f"{k}={v}")]
        done = run(tmp_path, "gpu", *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.asked > 100
    from mathrepro.report import read_results
    found = read_results(next((tmp_path/"jiuzhang").glob("gpu*.ipynb")))
    assert len(found["arms"]["rows"]) > 8 and not any(r["arm"] == "relevant texts" for r in found["arms"]["rows"])     # no relevance is known of real texts

def test_bad_settings_are_one_line(tmp_path):
    for more, word in ((("-p", "methods=[influence, random, luck]"), "luck"), (("-p", "author.engine=oracle"), "oracle")):
        done = run(tmp_path, "smoke", *more)
        assert done.returncode == 2 and word in done.stderr and len([l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]) == 1, (more, done.stderr)
