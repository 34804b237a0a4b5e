"A small paper notebook, and a folder that looks like a checkout around it."
import json, subprocess, sys
from pathlib import Path

PARAMETERS = "k = 8\nlr = 0.1\nmode = 'ok'\nsft = {'epochs': 3, 'size': 'd32'}"
WORK = """import os, random, sys, time
print('k', k, 'lr', lr, type(lr).__name__, 'sft', sft, os.environ.get('OMP_WAIT_POLICY'), random.random())
for i in range(200): print('line', i, flush=True)"""
TROUBLE = """from mathrepro.config import UserError
if mode == 'kill': os.kill(os.getpid(), 9)
if mode == 'sleep': open('sleeping', 'w').close(); time.sleep(120)
if mode == 'user': raise UserError('no data set gsm8k; set MATHREPRO_DATA')
if mode == 'bug': 1 / 0
if mode == 'exit': sys.exit(0)
if mode == 'disk': raise OSError(28, 'No space left on device')"""

def cell(kind, source, tags=()):
    made = dict(cell_type=kind, id=f"c{abs(hash((kind, source))) % 10**8}", metadata={"tags": list(tags)} if tags else {}, source=source)
    return made if kind == "markdown" else made | dict(execution_count=None, outputs=[])

def notebook(path, parameters=PARAMETERS):
    cells = [cell("markdown", "# Toy paper"), cell("code", parameters, ["parameters"]), cell("markdown", "## Work"), cell("code", WORK),
             cell("markdown", "## Trouble"), cell("code", TROUBLE), cell("markdown", "after"), cell("code", "print('the end')")]
    kernel = dict(display_name="mathrepro", language="python", name="mathrepro")
    Path(path).write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    return Path(path)

def make_checkout(root):
    "`root` as a checkout with the paper `toy` at the profiles smoke, cpu and gpu."
    for d in ("nbs/papers", "params/toy", "reports"): (root / d).mkdir(parents=True)
    (root / "settings.ini").write_text("[DEFAULT]\n")
    notebook(root / "nbs/papers/toy.ipynb")
    for name, k in (("smoke", 2), ("cpu", 3), ("gpu", 4)): (root / f"params/toy/{name}.yaml").write_text(f"k: {k}\nlr: 1e-5\nsft:\n  epochs: 1\n")
    return root

def call(*args, cwd=None, env=None, timeout=180):
    "Run `python -m …` or a console script of this environment; text output."
    import os
    env = {k: v for k, v in {**os.environ, **(env or {})}.items() if v is not None}
    return subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)

def script(name): return Path(sys.executable).parent / name
