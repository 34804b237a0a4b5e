"""The endpoint engine against a real vLLM server on loopback, behind a relay that counts and, where told to, makes trouble. Skipped, visibly, where vLLM is not installed."""
import http.client, json, logging, os, signal, socket, subprocess, sys, threading, time, traceback, urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from mathrepro.config import UserError
from mathrepro.engines.base import load_engine
from mathrepro.engines.vllm import environment, vllm_python
from mathrepro.runs import Run, StageError
from mathrepro.tiny import make_model, make_tokenizer
from mathrepro.training import SFTConfig, train_sft

try: vllm_python(); absent = None
except UserError as e: absent = str(e)
needs_vllm = pytest.mark.skipif(absent is not None, reason=str(absent))
ROWS = [dict(prompt=f"{a} + {b} =", response=f" {a + b}\n#### {a + b}" + " so" * (a % 4)) for a in range(12) for b in range(10)]
PROMPTS = [r["prompt"] for r in ROWS]
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"      # a user's text as it is: chat and plain completions read the same tokens
KEY = "k3y-that-nobody-may-see"


class Handler(BaseHTTPRequestHandler):
    "Passes requests on; `server.plan` holds what happens to the next ones instead: (status, headers), 'drop' or 'hang'."
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def say(self, status, data, headers=()):
        self.send_response(status)
        for k, v in {"content-type": "application/json", "content-length": str(len(data)), **dict(headers)}.items(): self.send_header(k, v)
        self.end_headers(); self.wfile.write(data)
    def do_GET(self): self.pass_on(None)
    def do_POST(self):
        r, data = self.server, self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(data)
        name = (body.get("prompt") or body["messages"][-1]["content"], body.get("seed"))
        with r.lock: r.asked[name] += 1; r.times.append(time.monotonic()); step = r.plan.pop(0) if r.plan else None
        time.sleep(r.delay)
        if step == "hang": time.sleep(2)
        if step in ("drop", "hang"): self.close_connection = True
        elif step: self.say(step[0], json.dumps(dict(error=dict(message=f"as planned, {self.headers['authorization']}"))).encode(), step[1].items())
        elif self.pass_on(data) == 200:
            with r.lock: r.answered[name] += 1
    def pass_on(self, data):
        up = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            up.request(self.command, self.path, data, {"content-type": "application/json"} if data else {})
            reply = up.getresponse(); text = reply.read()
        except (OSError, http.client.HTTPException): self.close_connection = True; return 0
        finally: up.close()
        self.say(reply.status, text)
        return reply.status


class Relay(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128
    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.url, self.lock = target, f"http://127.0.0.1:{self.server_port}/v1", threading.Lock()
        self.fresh()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
    def fresh(self, *plan, delay=0.0): self.plan, self.asked, self.answered, self.times, self.delay = list(plan), Counter(), Counter(), [], delay
    def handle_error(self, *a): pass


class Server:
    "vLLM's OpenAI server, in a process group of its own."
    def __init__(self, model, log):
        with socket.socket() as s: s.bind(("127.0.0.1", 0)); self.port = s.getsockname()[1]
        self.model, self.log, self.process = model, log, None
    def start(self):
        env = {k: v for k, v in environment(dict(tensor_parallel_size=1, cpu_cache_gib=1), ()).items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"} | dict(OMP_NUM_THREADS="1")
        command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port),
                   "--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--no-enable-chunked-prefill"]
        with open(self.log, "a") as log: self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.log.parent)
    def wait(self, seconds=300):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try: return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
            except OSError: time.sleep(0.2)
        raise AssertionError(f"no vLLM server within {seconds} s: {self.log.read_text()[-2000:]}")
    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL); self.process.wait()
    def finished(self):
        "Requests that the server says it has answered since it started."
        lines = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode().splitlines()
        return sum(float(l.split()[-1]) for l in lines if l.startswith("vllm:request_success_total") and ("stop" in l or "length" in l))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tok = make_tokenizer([r["prompt"] + r["response"] for r in ROWS], 280)
    tok.chat_template = CHAT
    base, out = make_model("l", tok, tmp_path_factory.mktemp("base"), seed=0), tmp_path_factory.mktemp("model")
    train_sft(base, ROWS, out, SFTConfig(epochs=12, batch_size=24, learning_rate=3e-3))
    return out


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    s = Server(folder, tmp_path_factory.mktemp("server") / "log")
    s.start()
    try: s.wait(); yield s
    finally: s.kill()


@pytest.fixture(scope="module")
def truth(folder):
    "Greedy texts of the transformers engine."
    e = load_engine(dict(engine="transformers", model=str(folder)))
    return [(c.text, c.finish, c.prompt_tokens, c.new_tokens) for c in e.generate(PROMPTS, max_new_tokens=24)]


@pytest.fixture(scope="module")
def relay(server):
    r = Relay(server.port)
    yield r
    r.shutdown(); r.server_close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch): monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def connect(relay, **settings):
    relay.fresh()
    return load_engine(dict(engine="endpoint", base_url=relay.url, model="tiny", concurrency=16, **settings))

def parts(completions): return [(c.text, c.finish, c.prompt_tokens, c.new_tokens) for c in completions]


@needs_vllm
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_greedy_text_is_the_same_as_from_transformers(relay, truth, api):
    e = connect(relay, api=api, price_in=1.0, price_out=3.0)
    assert e.vllm and parts(e.generate(PROMPTS, max_new_tokens=24)) == truth
    read, new = sum(t[2] for t in truth), sum(t[3] for t in truth)
    assert (e.usage.prompt_tokens, e.usage.new_tokens) == (read, new) and e.cost == pytest.approx((read + 3 * new) / 1e6)
    assert sum(relay.asked.values()) == len(PROMPTS)
    cut = e.generate(PROMPTS[:10], max_new_tokens=24, stop=["\n##"])
    assert [c.text for c in cut] == [t[0].split("\n##")[0] for t in truth[:10]]
    e.close()


@needs_vllm
def test_samples_are_seeded_by_row(relay):
    e = connect(relay, api="completions")
    draw = lambda ps, n: {(ps[c.prompt_index], c.sample_index): c.text for c in e.generate(ps, n=n, temperature=1.0, max_new_tokens=24, seed=3)}
    full, part = draw(PROMPTS[:20], 4), draw(PROMPTS[19:9:-1], 2)
    assert sum(full[k] == v for k, v in part.items()) / len(part) > 0.9 and len(set(full.values())) > 20
    assert len(relay.asked) == 80 and all(0 <= seed < 2**31 for _, seed in relay.asked)
    e.close()


@needs_vllm
def test_structured_output_and_refusals_of_a_real_server(relay):
    e = connect(relay, json_schema={"enum": ["yes", "no"]})
    assert {json.loads(c.text) for c in e.generate(PROMPTS[:5], max_new_tokens=24)} <= {"yes", "no"} and not e.plain
    with pytest.raises(UserError, match=r"prompt 1 \('1 \+ .*does not fit the context of tiny at http.*max_new_tokens"): e.generate([PROMPTS[0], "1 + " * 300])
    e.close()
    with pytest.raises(UserError, match=r"does not offer model 'tinny'.*it offers: tiny"): load_engine(dict(engine="endpoint", base_url=relay.url, model="tinny"))


@needs_vllm
def test_busy_and_failing_server(relay, truth):
    e = connect(relay, api="completions", timeout=6.0, max_wait=60.0)   # a busy machine answers late; that is no retry
    relay.fresh((429, {"retry-after": "4"}), (500, {}), (503, {"retry-after-ms": "100"}), (502, {}), "drop", "hang", (429, {}), (529, {}))
    assert parts(e.generate(PROMPTS, max_new_tokens=24)) == truth and e.counts["retries"] == 8
    assert set(relay.answered.values()) == {1} and len(relay.answered) == len(PROMPTS)
    since = [t - relay.times[0] for t in relay.times]           # what left before the answer was read comes in the first two seconds
    assert max(since) >= 4 and not [t for t in since if 2 < t < 3.9], "Retry-After rests all rows"
    e.close()


CLIENT = """import sys
from mathrepro.engines.base import load_engine
e = load_engine(dict(engine="endpoint", base_url=sys.argv[1], model="tiny", api="completions", concurrency=4, journal=sys.argv[2]))
e.generate(sys.argv[3].split("|"), n=2, temperature=1.0, max_new_tokens=24, seed=5)"""

@needs_vllm
def test_killed_client_goes_on_from_its_journal(relay, tmp_path):
    relay.fresh(delay=0.03)
    journal = tmp_path / "replies.jsonl"
    p = subprocess.Popen([sys.executable, "-c", CLIENT, relay.url, str(journal), "|".join(PROMPTS)])
    lines = lambda: journal.read_bytes().count(b"\n") if journal.exists() else 0
    until = time.monotonic() + 60
    while lines() < 50 and time.monotonic() < until: time.sleep(0.01)
    p.kill(); assert p.wait() == -9
    kept, first = lines(), Counter(relay.asked)
    assert 50 <= kept < 240
    with open(journal, "ab") as f: f.write(b'{"key": "torn in the mid')
    e = load_engine(dict(engine="endpoint", base_url=relay.url, model="tiny", api="completions", concurrency=4, journal=str(journal)))
    relay.delay = 0
    with pytest.raises(UserError, match="in use by another engine"): load_engine(dict(engine="endpoint", base_url=relay.url, model="tiny", journal=str(journal)))
    out = e.generate(PROMPTS, n=2, temperature=1.0, max_new_tokens=24, seed=5)
    assert len(out) == 240 and (e.counts["replayed"], e.counts["asked"]) == (kept, 240 - kept)
    assert sum(relay.asked.values()) == sum(first.values()) + 240 - kept and sum(n > 1 for n in relay.asked.values()) <= 4, "only what was under way is asked again"
    e.close()


@needs_vllm
def test_server_killed_and_restarted_half_way(server, relay, truth, tmp_path):
    patient = connect(relay, api="completions", journal=str(tmp_path / "a.jsonl"))
    hasty = load_engine(dict(engine="endpoint", base_url=relay.url, model="tiny", api="chat", concurrency=4, max_wait=0.5, journal=str(tmp_path / "b.jsonl")))
    texts = [f"{p} " for p in PROMPTS[:40]]                    # prompts of its own, so that the relay can tell the two apart
    kept = len(hasty.generate(texts[:15], max_new_tokens=8))
    relay.fresh(delay=0.05)
    result, half = [], threading.Event()
    def progress(done, total):
        if done >= 40: half.set()
    t = threading.Thread(target=lambda: result.extend(patient.generate(PROMPTS, max_new_tokens=24, progress=progress)))
    t.start(); assert half.wait(60)
    server.kill(); server.start()
    before = sum(relay.answered.values())
    assert 40 <= before < len(PROMPTS)
    with pytest.raises(UserError, match=f"{relay.url} has failed for 0.5 s.*replies are kept in .*b.jsonl"): hasty.generate(texts, max_new_tokens=8)
    server.wait(); t.join(120)
    assert not t.is_alive() and parts(result) == truth, "nothing lost"
    assert {relay.answered[p, None] for p in PROMPTS} == {1} and server.finished() == len(PROMPTS) - before, "nothing asked twice"
    assert patient.counts["asked"] == len(PROMPTS) and patient.counts["retries"] > 0
    assert len(hasty.generate(texts, max_new_tokens=8)) == 40 and [relay.answered[x, None] for x in texts] == [0] * kept + [1] * (40 - kept)
    patient.close(); hasty.close()


def ask(ctx, spec: dict, n: int):
    "Stage: replies.json, with a journal in the stage's scratch folder."
    e = load_engine({**spec, "journal": str(ctx.scratch / "replies.jsonl")})
    try: done = e.generate([f"question {i}" for i in range(n)], progress=lambda d, t: ctx.report(d, t, "replies"))
    finally: e.close()
    ctx.count(tokens_in=e.usage.prompt_tokens, tokens_out=e.usage.new_tokens)
    (ctx.out / "replies.json").write_text(json.dumps([c.text for c in done]))


class Guarded(BaseHTTPRequestHandler):
    "A server with a key that repeats what it is sent, in replies and in errors."
    def log_message(self, *a): pass
    def do_GET(self): self.answer()
    def do_POST(self): self.answer()
    def answer(self):
        s, body = self.server, json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        status = 200 if self.headers["authorization"] == f"Bearer {KEY}" else 401
        if body and s.plan: status = s.plan.pop(0)
        text = dict(message=f"you sent {self.headers['authorization']}", code="invalid_api_key")
        choice = dict(index=0, finish_reason="stop", message=dict(role="assistant", content="fine"))
        data = json.dumps(dict(error=text) if status != 200 else dict(choices=[choice], usage=dict(prompt_tokens=1, completion_tokens=2)) if body else dict(data=[dict(id="m")])).encode()
        self.send_response(status); self.send_header("content-type", "application/json"); self.send_header("content-length", str(len(data))); self.end_headers(); self.wfile.write(data)


def test_keys_are_seen_nowhere(tmp_path, monkeypatch, caplog, capfd):
    s = ThreadingHTTPServer(("127.0.0.1", 0), Guarded); s.plan = [500, 200, 400]
    threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True).start()
    spec = dict(engine="endpoint", base_url=f"http://127.0.0.1:{s.server_port}/v1", model="m", key_env="TEACHER_KEY", concurrency=1)
    caplog.set_level(logging.DEBUG)
    said = []
    def attempt():
        run = Run("keys", workers=0, home=tmp_path, progress="quiet")
        try: run.compute([run.stage("ask", ask, spec=spec, n=3)])
        except (StageError, UserError): said.append(traceback.format_exc())
        return run
    attempt(); monkeypatch.setenv("TEACHER_KEY", KEY + "x"); attempt(); monkeypatch.setenv("TEACHER_KEY", KEY); attempt()
    run = attempt()
    s.shutdown(); s.server_close()
    assert "TEACHER_KEY is not set" in said[0] and "refuses access (401)" in said[1] and "you sent" in said[2] and len(said) == 3
    assert run.ledger()[0]["tokens_out"] == 6, "a reply that a failed try left in the journal counts once, with the try that ends well"
    out = capfd.readouterr()
    assert caplog.text and not [x for x in (*said, caplog.text, out.out, out.err) if KEY in x]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
