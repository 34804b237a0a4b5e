"The papermill engine through papermill's own command line: what a person types is what is tested."
import json, sys
import pytest
from toys import call, notebook

def papermill(folder, *args): return call(sys.executable, "-m", "papermill", "-k", "mathrepro", "--engine", "mathrepro", "--no-progress-bar", "in.ipynb", "out.ipynb", *args, cwd=folder)

@pytest.fixture
def folder(tmp_path):
    notebook(tmp_path / "in.ipynb")
    return tmp_path

def result(folder):
    "(papermill metadata, statuses of the code cells, all of the notebook), markers left out."
    nb = json.loads((folder / "out.ipynb").read_text())
    cells = [c for c in nb["cells"] if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]
    return nb["metadata"]["papermill"], [c["metadata"]["papermill"]["status"] for c in cells if c["cell_type"] == "code"], nb

def test_plain_run(folder):
    (folder / "p.yaml").write_text("k: 3\nlr: 1e-5\nsft:\n  epochs: 1\n")
    r = papermill(folder, "-f", "p.yaml", "-p", "k", "4", "-p", "sft.size", "d64")
    assert r.returncode == 0, r.stderr
    meta, statuses, nb = result(folder)
    streams = [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "stream"]
    text = "".join("".join(o["text"]) for o in streams)
    assert "k 4 lr 1e-05 float sft {'epochs': 1, 'size': 'd64'} PASSIVE" in text, "typed, merged with the defaults, kernel environment set"
    assert len(streams) == 2 and "line 199" in text, "200 flushed prints are one output"
    assert set(statuses) == {"completed"} and not meta["exception"]
    ours = nb["metadata"]["mathrepro"]
    assert ours["parameters"] == {"k": 4, "lr": 1e-5, "mode": "ok", "sft": {"epochs": 1, "size": "d64"}}
    assert ours["params_file"] == "p.yaml" and ours["wall_s"] > 0 and "cores of" in ours["hardware"] and ours["packages"]["papermill"]

def test_same_kernel_seed_twice(folder):
    draws = []
    for _ in range(2):
        assert papermill(folder).returncode == 0
        draws.append(next(l for c in result(folder)[2]["cells"] for o in c.get("outputs", []) for l in o.get("text", []) if l.startswith("k ")))
    assert draws[0] == draws[1]

@pytest.mark.parametrize("mode, code, error, line", [
    ("kill", 138, "DeadKernelError", None), ("bug", 1, "ZeroDivisionError", None),
    ("user", 2, "UserError: no data set gsm8k", "mathrepro: error: no data set gsm8k; set MATHREPRO_DATA"), ("exit", 2, "SystemExit", "never ran")])
def test_stopped_notebook_tells_the_truth(folder, mode, code, error, line):
    r = papermill(folder, "-p", "mode", mode)
    meta, statuses, _ = result(folder)
    assert r.returncode == code, r.stderr
    assert statuses == ["completed", "completed", "completed", "failed", "pending"]
    assert meta["exception"] is True and meta["error"].startswith(error)
    if line: assert line in r.stderr and "Traceback" not in r.stderr

def test_cell_timeout(folder):
    r = papermill(folder, "-p", "mode", "sleep", "--execution-timeout", "4")
    meta, statuses, _ = result(folder)
    assert r.returncode != 0 and statuses[-2:] == ["failed", "pending"] and "CellTimeoutError" in meta["error"]

@pytest.mark.parametrize("text, args, says", [
    ("K: 3", (), "p.yaml, line 1: unknown parameter K; did you mean k?"),
    ("k: 3\nsft:\n  epoch: 1", (), "p.yaml, line 3: unknown parameter sft.epoch; did you mean sft.epochs?"),
    ("lr: fast", (), "p.yaml, line 1: parameter lr: expected number (as 0.1), got text 'fast'"),
    ("k: 1e-5", (), "p.yaml, line 1: parameter k: expected integer"),
    ("k: 3\nk: 4", (), "p.yaml, line 2: k is given twice"),
    ("", ("-p", "k", "True"), "parameter k: expected integer (as 8), got true/false True"),
    ("", ("-p", "k", "2.5"), "parameter k: expected integer (as 8), got number 2.5"),
    ("", ("-p", "sft", "3"), "parameter sft: expected mapping")])
def test_refused_before_the_kernel_starts(folder, text, args, says):
    (folder / "p.yaml").write_text(text + "\n")
    r = papermill(folder, "-f", "p.yaml", *args)
    assert r.returncode == 2 and f"mathrepro: error: {says}" in r.stderr, r.stderr
    assert "Traceback" not in r.stderr and not (folder / "out.ipynb").exists()

def test_parameters_cell_must_be_plain(tmp_path):
    notebook(tmp_path / "in.ipynb", "k = int('3')")
    r = papermill(tmp_path, "-p", "k", "4")
    assert r.returncode == 2 and "parameters cell, line 1" in r.stderr
