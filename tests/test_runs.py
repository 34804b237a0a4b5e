"Runs across processes: kills, locks, dead workers, full disks. Function-level tests are in nbs/03*.ipynb."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import psutil, pytest

sys.path.insert(0, str(Path(__file__).parent))
import stages_for_tests as st
from mathrepro.config import UserError
from mathrepro.keys import content_hash, file_hash
from mathrepro.ledger import read_log
from mathrepro.runs import Run, StageError
from mathrepro.store import prune
from mathrepro.workers import close_workers

HERE = str(Path(__file__).parent)

def spawn(code, **kw):
    "Python in its own process with this folder's modules."
    return subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, {HERE!r})\n{code}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def data(home):
    "Relative name -> sha256 of everything in the store but the costs."
    store = Path(home) / "store"
    return {str(p.relative_to(store)): file_hash(p) for p in sorted(store.rglob("*")) if p.is_file() and p.name != "cost.json"}

def toy(home, workers=1, name="toy", **kw): return Run(name, workers=workers, home=home, progress="quiet", **kw)

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def test_killed_anywhere_same_bytes(tmp_path):
    calm, run_code = tmp_path / "calm", "import stages_for_tests as st; run, last = st.pipeline({!r}, pause=0.003); run.compute(last)"
    run, last = st.pipeline(calm, pause=0.003); run.compute(last)
    home, rng, kills = tmp_path / "killed", random.Random(0), 0
    shards = lambda: len(list(home.glob("work/*/out/shard-*"))) + len(list(home.glob("store/*/shard-*")))
    for i in range(10):
        p = spawn(run_code.format(str(home)))
        had = shards()
        while i % 3 and p.poll() is None and shards() == had: time.sleep(0.01)   # else: while it starts
        time.sleep(rng.uniform(0.0, 0.25))
        workers = psutil.Process(p.pid).children(recursive=True) if p.poll() is None else []
        p.send_signal(signal.SIGKILL); kills += p.wait() == -9
        gone, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive, "workers must die with their parent"
        p.stdout.close(); p.stderr.close()
    p = spawn(run_code.format(str(home))); out, err = p.communicate(timeout=60); assert p.returncode == 0, err
    assert kills >= 4 and data(home) == data(calm) and not list((home / "work").iterdir())
    again, last = st.pipeline(home, pause=0.003)
    t, rows = again.totals(), again.ledger()
    assert t["missing"] == 0 and max(r["sessions"] for r in rows) > 1, "some stage was resumed"
    assert t["tokens_out"] >= 200 + 230 + 260 and t["elapsed_s"] > 1

def test_schedule_and_workers_change_nothing(tmp_path):
    seen = []
    for workers in (0, 1, 3):
        run, last = st.pipeline(tmp_path / str(workers), workers=workers); run.compute(last); seen.append(data(run.home))
    assert seen[0] == seen[1] == seen[2]

def test_two_processes_on_one_run(tmp_path):
    flag = tmp_path / "go"
    first = spawn(f"import stages_for_tests as st; from mathrepro.runs import Run; r = Run('toy', home={str(tmp_path)!r}, progress='quiet'); r.compute(r.stage('w', st.wait_for, file={str(flag)!r}))")
    while not (tmp_path / "toy" / "log.jsonl").exists(): time.sleep(0.02); assert first.poll() is None
    run = toy(tmp_path); s = run.stage("n", st.note, text="x")
    with pytest.raises(UserError, match=rf"run 'toy' is in use by process {first.pid} .*started 20.*wait=True"): run.compute(s)
    said = []
    second = spawn(f"import stages_for_tests as st; from mathrepro.runs import Run; r = Run('toy', home={str(tmp_path)!r}, wait=True); r.compute(r.stage('n', st.note, text='y'))")
    time.sleep(0.8); assert second.poll() is None
    flag.touch()
    assert first.wait(20) == 0 and (err := second.communicate(timeout=30)[1]) and second.returncode == 0 and "waiting for it" in err
    run.compute(s)

def test_two_runs_share_a_stage(tmp_path):
    code = "import stages_for_tests as st; from mathrepro.runs import Run; r = Run({!r}, home={!r}, progress='quiet'); r.compute(r.stage({!r}, st.slow_note, text='x', seconds=1.0))"
    ps = [spawn(code.format(n, str(tmp_path), n + "/s")) for n in ("a", "b")]
    for p in ps: assert p.wait(30) == 0, p.stderr.read()
    events = [r["event"] for n in "ab" for r in read_log(tmp_path / n) if r["event"] in ("done", "cached")]
    assert sorted(events) == ["cached", "done"] and len(list((tmp_path / "store").iterdir())) == 1
    assert not prune(tmp_path)

@pytest.mark.parametrize("how,words", [("kill", "SIGKILL, most likely because memory ran out"), ("crash", "SIGSEGV"), ("exit", "SystemExit"), ("value", "ValueError: no such luck")])
def test_failures_name_the_stage(tmp_path, how, words):
    run = toy(tmp_path, workers=2)
    bad, good = run.stage("bad", st.fails, how=how), run.stage("good", st.slow_note, text="x", seconds=0.5)
    with pytest.raises(StageError, match=words) as e: run.compute([bad, good])
    assert "'bad'" in str(e.value) and bad.key[:16] in str(e.value) and e.value.key == bad.key
    if how == "value": assert "stages_for_tests.py" in str(e.value) and "Traceback" in e.value.trace
    if how == "crash": assert "about to crash" in str(e.value) or "stages_for_tests.py" in str(e.value)
    assert good.file("note.txt").read_text() == "x", "what was under way finished"
    run.compute(run.stage("next", st.note, text="the pool works on"))
    assert [r["state"] for r in run.ledger()] == ["missing", "computed", "computed"]

@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_stay_one_line(tmp_path, workers):
    run = toy(tmp_path, workers=workers)
    with pytest.raises(UserError) as e: run.compute(run.stage("bad", st.fails, how="user"))
    assert str(e.value) == "stage 'bad': no problems in the file; pass another file"

def test_damage_is_found(tmp_path, capsys):
    run, last = st.pipeline(tmp_path, workers=1); run.compute(last)
    whole, f = data(tmp_path), run.stages["draw/1"].file("shard-00001.parquet")
    f.write_bytes(f.read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged.*bytes instead of"): run.compute(last, on_corrupt="error")
    run.compute(last); assert "is damaged" in capsys.readouterr().err
    flipped = bytearray(f.read_bytes()); flipped[20] ^= 1; f.write_bytes(flipped)
    run.compute(last); assert data(tmp_path) != whole, "the cheap check looks at sizes only"
    run.compute(last, verify=True)
    for p in (tmp_path / "store").glob("*names*/stage.json"): p.unlink()
    run.compute(last)
    assert {k: v for k, v in data(tmp_path).items() if not k.startswith(".corrupt")} == whole
    assert len(prune(tmp_path)) == 3 == len(prune(tmp_path, delete=True)) and data(tmp_path) == whole

def test_code_changes_the_key_and_the_worker(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    helper, stages = tmp_path / "helper_mod.py", tmp_path / "stage_mod.py"
    stages.write_text("import mathrepro.config\ndef f(ctx):\n    from helper_mod import X\n    ctx.commit('x.json', X)\n")
    helper.write_text("X = 1\n")
    import stage_mod
    run = toy(tmp_path / "home"); a = run.stage("f", stage_mod.f); run.compute(a)
    stages.write_text("'Doc.'\nimport mathrepro.config\n\ndef f(ctx):\n    'doc'\n    from helper_mod import X   # comment\n    ctx.commit('x.json', X)\n")
    assert run.stage("f", stage_mod.f).key == a.key
    stages.write_text("def f(ctx): ctx.commit('x.json', 'edited')\n")
    b = run.stage("f", stage_mod.f); assert b.key != a.key
    run.compute(b); assert b.json("x.json") == "edited", "a worker that holds the old code is replaced"
    assert run.stage("n", st.note, text="a").key != run.stage("n", st.note, text="b").key

def disk_of(path, mib):
    "A disk of `mib` at `path`, or None when this process may not mount one."
    path.mkdir()
    ok = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], capture_output=True).returncode == 0
    return path if ok else None

def test_full_disk(tmp_path):
    small = disk_of(tmp_path / "small", 4)
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19)); import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)" if small is None else ""
    home = small or tmp_path / "home"
    code += f"\nimport stages_for_tests as st; from mathrepro.runs import Run; r = Run('toy', workers=1, home={str(home)!r}, progress='quiet'); n = r.stage('n', st.note, text='x'); b = r.stage('big', st.big, mib=6)"
    code += "\nr.compute(n)\ntry: r.compute(b)\nexcept Exception as e: print(type(e).__name__, e)\nassert n.json('note.json')"
    try:
        out, err = (p := spawn(code)).communicate(timeout=60)
        assert out.startswith("UserError stage 'big': ") and "MiB free" in out and out.count("\n") == 1, out + err
        if small:
            assert "no disk space left" in out
            subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
            run = toy(small); run.compute(s := run.stage("big", st.big, mib=6))
            assert len(list(s.path.glob("*.bin"))) == 6 and run.ledger()[0]["sessions"] == 2, "went on at the shard that did not fit"
    finally:
        close_workers()
        if small: subprocess.run(["umount", "-l", str(small)])

def test_read_only_folder(tmp_path):
    home = tmp_path / "home"; home.mkdir(); os.chmod(home, 0o555)
    for p in [tmp_path, *tmp_path.parents][:3]: os.chmod(p, 0o755)
    code = f"import stages_for_tests as st, os; from mathrepro.runs import Run\nif os.geteuid() == 0: os.setuid(65534)\nr = Run('toy', workers=0, home={str(home)!r}); r.compute(r.stage('n', st.note, text='x'))"
    out, err = (p := spawn(code)).communicate(timeout=30)
    assert p.returncode and "UserError: cannot write" in err and "MATHREPRO_HOME" in err.strip().splitlines()[-1], err

def test_threads_environment_and_prints(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SETTING", "1")
    run = toy(tmp_path, workers=2, threads=1)
    a, b = run.stage("a", st.note, text="a"), run.stage("b", st.note, text="b")
    run.compute(a); run.compute(b)
    assert a.json("note.json")["threads"] == "1" and a.json("note.json")["hash seed"] == "0"
    assert a.json("note.json")["pid"] == b.json("note.json")["pid"] != os.getpid(), "workers live on"
    assert (run.folder / "logs" / f"a-{a.key[:16]}.txt").read_text() == "noting a\n"

def test_nothing_to_do_is_quick(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)   # 200 stages on a busy disk would take the test's time
    run = toy(tmp_path, workers=0)
    stages = [run.stage(f"n/{i}", st.note, text=str(i)) for i in range(200)]
    run.compute(stages)
    again = toy(tmp_path); stages = [again.stage(f"n/{i}", st.note, text=str(i)) for i in range(200)]
    start = time.perf_counter(); again.compute(stages); took = time.perf_counter() - start
    assert took < 0.3, took

def test_unimportable_and_wrong_parameters(tmp_path):
    run = toy(tmp_path)
    with pytest.raises(UserError, match="cannot be imported by a worker"): run.stage("x", lambda ctx: None)
    with pytest.raises(TypeError, match="stage 'x': note: got an unexpected keyword argument 'txt'"): run.stage("x", st.note, text="x", txt="x")
    with pytest.raises(UserError, match="stage 'x', parameter text is a pathlib"): run.stage("x", st.note, text=Path("x"))
    for name in ("", "../up", "store", "work/x", "a//b"):
        with pytest.raises(UserError, match="run name"): toy(tmp_path, name=name)

def test_in_a_notebook(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = f"import sys; sys.path.insert(0, {HERE!r}); import stages_for_tests as st\nrun, last = st.pipeline({str(tmp_path)!r}, pause=0.003); run.progress = None; run.compute(last)\nprint(last.json('total.json')['names'])"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(nb, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [o["output_type"] for o in nb.cells[0].outputs]
    assert sorted(kinds) == ["display_data", "stream"], nb.cells[0].outputs
    shown = next(o for o in nb.cells[0].outputs if o["output_type"] == "display_data")
    assert "5 of 5 stages computed" in shown["data"]["text/plain"]
