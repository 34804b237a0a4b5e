"The command line in its own process: help, exit codes, one-line errors, runs that are skipped, fail and stop."
import fcntl, json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from toys import call, make_checkout, script

def mathrepro(*args, **kw): return call(script("mathrepro"), *args, **kw)

@pytest.fixture
def co(tmp_path): return make_checkout(tmp_path / "checkout")

def error_of(r):
    "The one line of an error; nothing else may look like one."
    lines = [l for l in r.stderr.splitlines() if l.startswith("mathrepro: error: ")]
    assert len(lines) == 1 and "Traceback" not in r.stderr, r.stderr
    return lines[0]

@pytest.mark.parametrize("args", [[], ["--help"], ["run", "--help"], ["report", "--help"], ["clean", "--help"], ["papers", "--help"], ["doctor", "--help"], ["kernel", "--help"], ["kernel", "install", "--help"]])
def test_help_has_examples(args):
    r = mathrepro(*args)
    assert r.returncode == 0 and "examples:\n  " in r.stdout and "mathrepro " in r.stdout.split("examples:")[1]

def test_version_agrees_with_the_package():
    import mathrepro as package
    assert mathrepro("--version").stdout.strip() == f"mathrepro {package.__version__}"

@pytest.mark.parametrize("code", ["from mathrepro.cli import parser; parser().format_help()",
                                  "from mathrepro.notebooks import plan_run, finished; finished(plan_run('toy', 'cpu'))",
                                  "from mathrepro.doctor import screen, checks; screen(checks())"])
def test_light_imports(code, co):
    heavy = ["torch", "transformers", "pandas", "numpy", "scipy", "matplotlib", "papermill", "nbformat", "IPython", "ipykernel", "pyarrow"]
    allowed = {"numpy", "pyarrow"} if "doctor" in code else set()
    r = call(sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps([m for m in {heavy} if m in sys.modules]))", cwd=co)
    assert r.returncode == 0 and set(json.loads(r.stdout.splitlines()[-1])) <= allowed, r.stdout + r.stderr

@pytest.mark.parametrize("args, says", [
    (["run", "toi"], "no paper 'toi'; did you mean toy?"),
    (["run", "toy", "--profile", "cpuu"], "no profile 'cpuu' for toy; did you mean cpu?"),
    (["run", "toy", "-p", "kk=1"], "unknown parameter kk; did you mean k?"),
    (["run", "toy", "-p", "sft.epoch=1"], "did you mean sft.epochs?"),
    (["run", "toy", "-p", "k=many"], "parameter k: expected integer (as 8), got text 'many'"),
    (["run", "toy", "-p", "k"], "expected name=value"),
    (["run", "toy", "-p", "k=true"], "expected integer"),
    (["papers", "toi"], "did you mean toy?")])
def test_bad_input_is_one_line(co, args, says):
    r = mathrepro(*args, cwd=co)
    assert r.returncode == 2 and says in error_of(r)

def test_bad_profile_names_the_line(co):
    (co / "params/toy/cpu.yaml").write_text("k: 3\nsft:\n  epochs: many\n")
    assert "cpu.yaml, line 3: parameter sft.epochs: expected integer (as 3), got text 'many'" in error_of(mathrepro("run", "toy", "--profile", "cpu", cwd=co))

def test_gpu_profile_without_gpu(co):
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    assert "--profile cpu" in error_of(mathrepro("run", "toy", "--profile", "gpu", cwd=co, env=no_gpu))
    (co / "nbs/papers/toy.ipynb").write_text((co / "nbs/papers/toy.ipynb").read_text().replace("k = 8", "k = 8\\ndevice = 'cuda'"))
    r = mathrepro("run", "toy", "--profile", "gpu", "-p", "device=cpu", "--print", cwd=co, env=no_gpu)
    assert r.returncode == 0 and "-p device cpu" in r.stdout
    r = mathrepro("run", "toy", "--profile", "gpu", "--print", cwd=co, env=no_gpu)
    assert r.returncode == 0 and "toy.ipynb" in r.stdout, "a command may be printed where it cannot run"

def test_papers_and_print(co):
    r = mathrepro("papers", "toy", cwd=co)
    assert "smoke" in r.stdout and "sft.epochs" in r.stdout and "cpu=3" in r.stdout
    r = mathrepro("run", "toy", "--profile", "cpu", "-p", "k", "4", "-p", "sft.size=d64", "--print", cwd=co)
    assert r.stdout.startswith("papermill -k mathrepro --engine mathrepro nbs/papers/toy.ipynb runs/toy/") and "-p k 4 -p sft.size d64" in r.stdout
    assert not (co / "runs").exists()

def test_run_then_nothing_to_do(co):
    r = mathrepro("run", "toy", "--profile", "smoke", "-p", "k=5", "--no-report", cwd=co)
    assert r.returncode == 0 and "Work" in r.stderr, r.stderr
    out = co / "runs/toy/smoke,k=5.ipynb"
    meta = json.loads(out.read_text())["metadata"]["mathrepro"]
    assert meta["parameters"]["k"] == 5 and meta["paper"] == "toy" and meta["profile"] == "smoke" and meta["overrides"] == ["k=5"] and not list(co.rglob("*.part"))
    before, start = out.stat().st_mtime_ns, time.time()
    r = mathrepro("run", "toy", "--profile", "smoke", "-p", "k=5", "--no-report", cwd=co)
    assert "nothing to do" in r.stderr and out.stat().st_mtime_ns == before and time.time() - start < 5
    (co / "params/toy/claims.yaml").write_text("[]\n")
    assert "nothing to do" not in mathrepro("run", "toy", "--profile", "smoke", "-p", "k=5", "--no-report", cwd=co).stderr, "claims are part of the key"

@pytest.mark.parametrize("mode, code, says", [("user", 2, "no data set gsm8k; set MATHREPRO_DATA"), ("bug", 1, "'Trouble': ZeroDivisionError: division by zero (see "),
                                              ("kill", 1, "the kernel died"), ("disk", 1, "no space left on the disk")])
def test_failed_run(co, mode, code, says):
    r = mathrepro("run", "toy", "--profile", "cpu", "-p", f"mode={mode}", cwd=co)
    assert r.returncode == code and says in error_of(r)
    assert [p.name for p in (co / "runs/toy").glob("*.ipynb")] == [f"cpu,mode={mode}.failed.ipynb"] and not list(co.rglob("*.part"))

def test_interrupt_and_second_process(co):
    p = subprocess.Popen([script("mathrepro"), "run", "toy", "--profile", "cpu", "-p", "mode=sleep"], cwd=co, stderr=subprocess.PIPE, text=True, start_new_session=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))   # a job started in the background ignores SIGINT
    for _ in range(600):
        if (co / "sleeping").exists(): break
        time.sleep(0.1)
    assert "another process" in error_of(mathrepro("run", "toy", "--profile", "cpu", "-p", "mode=sleep", cwd=co))
    os.kill(p.pid, signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "finished stages are kept" in err and "Traceback" not in err, err

def test_folder_that_cannot_be_written(co, tmp_path):
    (tmp_path / "file").write_text("")
    r = mathrepro("run", "toy", "--profile", "cpu", cwd=co, env={"MATHREPRO_HOME": str(tmp_path / "file" / "runs")})
    assert r.returncode == 2 and "MATHREPRO_HOME" in error_of(r)

def test_clean_spares_what_a_run_needs(co):
    home = co / "runs"
    def stage(key):
        (home / "store" / f"s-{key}").mkdir(parents=True); (home / "store" / f"s-{key}" / "rows.parquet").write_bytes(b"0" * 2**20)
    stage("0" * 16); stage("1" * 16); (home / "toy/cpu").mkdir(parents=True)
    (home / "toy/cpu/run.json").write_text(json.dumps({"stages": [{"key": "0" * 64}]}))
    kept = lambda: sorted(p.name[-1] for p in (home / "store").iterdir())
    assert "1 folders, 1 MiB, that no run needs any more" in mathrepro("clean", cwd=co).stdout and kept() == ["0", "1"]
    with open(home / "toy/cpu.lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        r = mathrepro("clean", "--delete", cwd=co)
        assert r.returncode == 2 and "toy/cpu is at work" in error_of(r) and kept() == ["0", "1"]
    assert "were removed" in mathrepro("clean", "--delete", cwd=co).stdout and kept() == ["0"]
    assert "nothing that no run needs" in mathrepro("clean", cwd=co).stdout

def test_doctor(co):
    r = mathrepro("doctor", cwd=co)
    assert all(w in r.stdout for w in ("python", "torch", "vllm", "kernel", "data sets", "runs")) and len(r.stdout.splitlines()) < 40

def test_kernel_install_prefix(tmp_path):
    assert mathrepro("kernel", "install", "--prefix", tmp_path).returncode == 0
    spec = json.loads((tmp_path / "share/jupyter/kernels/mathrepro/kernel.json").read_text())
    assert Path(spec["argv"][0]).is_absolute() and Path(spec["argv"][0]).parent == Path(sys.executable).parent
