"A small paper notebook, and a folder that looks like a checkout around it."
import json, subprocess, sys, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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

class Served(BaseHTTPRequestHandler):
    "An engine of the world as an OpenAI-compatible server."
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def say(self, value):
        data = json.dumps(value).encode()
        self.send_response(200); self.send_header("content-type", "application/json"); self.send_header("content-length", str(len(data))); self.end_headers(); self.wfile.write(data)
    def do_GET(self): self.say(dict(object="list", data=[dict(id=self.server.model, object="model")]))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked += 1
            if self.server.said: print(json.dumps([self.server.asked, body["messages"][-1]["content"], body.get("seed")]), file=self.server.said, flush=True)
            c = self.server.llm.generate([body["messages"][-1]["content"]], temperature=body["temperature"], seed=body.get("seed", 0), max_new_tokens=1024)[0]
        self.say(dict(id="x", object="chat.completion", created=0, model=self.server.model, usage=dict(prompt_tokens=c.prompt_tokens, completion_tokens=c.new_tokens, total_tokens=c.prompt_tokens + c.new_tokens),
                      choices=[dict(index=0, finish_reason=c.finish, message=dict(role="assistant", content=c.text))]))

@contextmanager
def served_engine(engine, model, port=0, said=None):
    "A server on loopback that answers with an engine of the world under the name `model`; `asked` counts requests, the open file `said` gets a line for each."
    from mathrepro.engines.base import load_engine
    server = ThreadingHTTPServer(("127.0.0.1", port), Served)
    server.llm, server.model, server.lock, server.asked, server.said = load_engine(dict(engine=engine)), model, threading.Lock(), 0, said
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server
    finally: server.shutdown()

if __name__ == "__main__":     # python toys.py ENGINE MODEL PORT LOG: the same server as a process of its own, to be killed
    with open(sys.argv[4], "a") as said, served_engine(*sys.argv[1:3], int(sys.argv[3]), said): threading.Event().wait()
