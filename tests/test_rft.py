"The RFT study through its doors: the command line at smoke size, killed and resumed, and training under a launcher."
import hashlib, json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from chaos import SMALLER
from toys import script

ROOT = Path(__file__).resolve().parent.parent

def environment(home): return {**os.environ, "MATHREPRO_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}

def run_smoke(home, *more):
    return subprocess.run([script("mathrepro"), "run", "rft", "--profile", "smoke", "--no-report", *more], cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=900)

def data_files(home):
    "sha256 of every data file of every finished stage; cost and provenance records differ from run to run by nature."
    return {str(p.relative_to(home)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((home/"store").rglob("*")) if p.is_file() and p.name not in ("stage.json", "cost.json")}

@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = run_smoke(home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home

def results(home):
    from mathrepro.report import read_results
    return read_results(home/"rft"/"smoke.ipynb")

def test_smoke_gives_every_claim_a_verdict(undisturbed):
    verdicts = results(undisturbed)["claims"]
    got = {v["id"]: v["verdict"] for v in verdicts}
    assert len(got) == 32 and set(got.values()) <= {"supported", "contradicted", "inconclusive", "not run"}
    assert all(got[c] == "not run" for c in got if not c.startswith("audit")), "smoke is too small for a verdict on training"
    assert got["audit-loss-over-size"] == "supported" and got["audit-distinct-k1"] == "contradicted"

def test_smoke_records_every_table(undisturbed):
    r = results(undisturbed)
    assert {"arms", "comparisons", "paths", "filter", "scaling", "ladder", "votes", "variety", "graders", "audit"} <= set(r)
    arms = {row["arm"]: row for row in r["arms"]["rows"]}
    assert arms["SFT, as many steps"]["steps"] == arms["RFT k=2"]["steps"] >= arms["SFT"]["steps"]
    assert arms["RFT, duplicates, as many rows"]["rows"] == arms["RFT k=2"]["rows"]

def test_nothing_to_do_starts_no_kernel(undisturbed):
    done = run_smoke(undisturbed)
    assert done.returncode == 0 and "[" not in done.stdout, done.stdout

def test_killed_study_ends_with_the_same_bytes(tmp_path):
    smaller, calm, home = [w for s in SMALLER["rft"] for w in ("-p", s)], tmp_path/"calm", tmp_path/"killed"
    p = subprocess.Popen([script("mathrepro"), "run", "rft", "--profile", "smoke", "--no-report", *smaller], cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list((home/"store").glob("train-*"))) < 3 and p.poll() is None and time.monotonic() < deadline: time.sleep(0.1)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    before = data_files(home)
    for place in (home, calm):
        done = run_smoke(place, *smaller)
        assert done.returncode == 0, done.stdout + done.stderr
    assert before and len(before) < len(data_files(calm)) and data_files(home) == data_files(calm)

def test_training_under_a_launcher_gives_the_same_model(tmp_path):
    from mathrepro import arms
    from mathrepro.pretraining import shipped
    from mathrepro.records import Problem, write_table
    from mathrepro.runs import Run
    run = Run("launch", workers=0, home=tmp_path, progress="quiet")
    os.environ.setdefault("MATHREPRO_HOME", str(tmp_path))
    train, base = run.stage("data", arms.load_problems, dataset="world", split="train", n=8, seed=0), run.stage("base", arms.base_model, model="world:xs")
    rows = run.stage("rows", arms.gold_rows, problems=train)
    sft = dict(epochs=1, batch_size=4, learning_rate=1e-3, device="cpu")
    both = [run.stage(f"train/{i}", arms.train, base=base, rows=rows, sft=s, template="plain") for i, s in enumerate((sft, {**sft, "launch": sys.executable}))]
    run.compute()
    assert both[0].json("training.json") == both[1].json("training.json")
    assert (both[0].path/"model/model.safetensors").read_bytes() == (both[1].path/"model/model.safetensors").read_bytes()

@pytest.mark.skipif(not os.environ.get("MATHREPRO_DATA"), reason="needs GSM8K: set MATHREPRO_DATA")
def test_gpu_profile_cut_down(tmp_path):
    "GSM8K, validation cut from train, instruction template, bfloat16 training; a tiny base model in place of the pretrained one."
    cut = "device=cpu engine.engine=transformers engine.dtype=float32 base=world:xs ladder=[world:xs] seeds=[0] side_seeds=[0] data.train.n=6 data.valid.n=2 data.test.n=4 k=2 ks=[1,2] fractions=[1.0,0.5] rules=[] sampling.max_new_tokens=16 threads=1"
    more = [a for p in [*cut.split(), "vote={n: 2, limit: 2}"] for a in ("-p", p)]
    done = subprocess.run([script("mathrepro"), "run", "rft", "--profile", "gpu", "--no-report", *more], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    from mathrepro.report import read_results
    r = read_results(next((tmp_path/"rft").glob("gpu*.ipynb")))
    assert {row["rows"] for row in r["arms"]["rows"]} == {6} and r["ladder"]["rows"][0]["parameters"] == 72928

def test_bad_settings_are_one_line(tmp_path):
    for more, word in ((("-p", "ks=[1, 8]"), "raise k"), (("-p", "sft.epoch=3"), "epochs"), (("-p", "base=world:xxl"), "world model")):
        done = run_smoke(tmp_path, *more)
        assert done.returncode == 2 and word in done.stderr and len([l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]) == 1, (more, done.stderr)
