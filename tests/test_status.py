"The commands status and slurm in their own processes, and a batch script run without Slurm."
import json, os, subprocess, sys, time
from pathlib import Path
import pytest
from toys import call, make_checkout, script

HERE = str(Path(__file__).parent)
def mathrepro(*args, env=None, **kw): return call(script("mathrepro"), *args, env={"MATHREPRO_HOME": None, **(env or {})}, **kw)

@pytest.fixture
def co(tmp_path): return make_checkout(tmp_path / "checkout")

def test_status_of_nothing(co):
    r = mathrepro("status", cwd=co)
    assert r.returncode == 2 and "no runs in" in r.stderr and "start one" in r.stderr and r.stderr.count("\n") == 1
    for c in ("status", "slurm"): assert "examples:\n  mathrepro " + c in mathrepro(c, "--help").stdout

def test_status_while_a_run_goes_on_and_after(tmp_path):
    env, code = {"MATHREPRO_HOME": str(tmp_path)}, f"import sys; sys.path.insert(0, {HERE!r}); import stages_for_tests as st; run, last = st.pipeline({str(tmp_path)!r}, pause=0.01); run.compute(last)"
    p = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.glob("work/*/out/shard-*")): time.sleep(0.02); assert p.poll() is None
    v = json.loads(mathrepro("status", "toy", "--json", env=env).stdout)
    assert v["state"] == "running" and v["process"]["pid"] == p.pid and sum(v["stages"].values()) == 5 and v["stages"]["running"] >= 1 and v["rows"] > 0 and v["cost"]["tokens_out"] > 0
    r = mathrepro("status", "toy", "--watch", env=env); views = r.stdout.split("toy: ")
    assert p.wait(60) == 0 and views[1].startswith("running, process") and views[-1].startswith("finished") and max(map(len, r.stdout.splitlines())) <= 80
    v = json.loads(mathrepro("status", "--json", env=env).stdout)["runs"][0]
    assert v["state"] == "finished" and v["progress"] == 1.0 and v["process"] is None and v["trouble"] == dict(restarts=0, resumed=0, failures=0, moved_aside=0)
    shard = next(tmp_path.glob("store/draw-1-*/shard-00002.parquet")); b = bytearray(shard.read_bytes()); b[25] ^= 1; shard.write_bytes(b)
    r = mathrepro("status", "toy", "--verify", env=env)
    assert r.returncode == 1 and "draw/1: shard-00002.parquet has changed" in r.stdout and not shard.exists()
    assert mathrepro("status", "toy", "--verify", env=env).returncode == 0 and "done 4" in mathrepro("status", "toy", env=env).stdout

def test_the_batch_script_runs_its_task(co, tmp_path):
    r = mathrepro("slurm", "toy", "toy", "--profile", "smoke", "-p", "k=5", cwd=co)
    job = tmp_path / "job.sh"; job.write_text(r.stdout)
    assert r.returncode == 0 and call("bash", "-n", job).returncode == 0 and "#SBATCH --array=0-1\n" in r.stdout
    assert mathrepro("run", "toy", "--profile", "smoke", "-p", "k=5", "--print", cwd=co).stdout.strip() in r.stdout, "the papermill line is the one that run --print shows"
    for says in ("finished in", "nothing to do"):
        r = call("bash", job, cwd=tmp_path, env={"SLURM_ARRAY_TASK_ID": "1", "MATHREPRO_HOME": None})
        assert r.returncode == 0 and says in r.stderr, r.stderr
    assert (co / "runs/toy/smoke,k=5.ipynb").exists()
    assert call("bash", job, env={"SLURM_ARRAY_TASK_ID": None}).returncode and "no parameter" in mathrepro("slurm", "toy", "--profile", "smoke", "--array-of", "seeds", cwd=co).stderr
