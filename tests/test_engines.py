"""Engines over whole folders: other architectures, wrong folders, how far a batch's composition can reach."""
import json, shutil
import numpy as np, pytest, torch
from mathrepro.config import UserError
from mathrepro.engines.base import load_engine
from mathrepro.tiny import make_model, make_tokenizer
from mathrepro.training import SFTConfig, train_sft

ROWS = [dict(prompt=f"{a} + {b} =", response=f" {a + b}\n#### {a + b}" + " so" * (a % 4)) for a in range(12) for b in range(10)]


@pytest.fixture(scope="module")
def tok(): return make_tokenizer([r["prompt"] + r["response"] for r in ROWS], 280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tok):
    base, out = make_model("s", tok, tmp_path_factory.mktemp("base"), seed=0), tmp_path_factory.mktemp("model")
    train_sft(base, ROWS, out, SFTConfig(epochs=20, batch_size=24, learning_rate=4e-3))
    return out


def test_wrong_folders_say_what_is_missing(tmp_path, folder):
    for spec, says in ((dict(engine="transformer", model=str(folder)), "did you mean transformers"), (dict(model=str(tmp_path / "no")), "does not exist"), (dict(model=str(folder), batchsize=3), "did you mean batch_size"),
                       (dict(model=str(folder), dtype="float64"), "dtype 'float64' is unknown")):
        with pytest.raises(UserError, match=says): load_engine(spec)
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    for engine in ("transformers", "vllm"):
        with pytest.raises(UserError, match="has no tokenizer"): load_engine(dict(engine=engine, model=str(tmp_path / "bare")))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="GPU was asked for"): load_engine(dict(model=str(folder), device="cuda"))
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"): load_engine(dict(model=str(tmp_path / "torn")))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gqa", "qwen3"])
def test_other_architectures_agree_with_generate(tmp_path, tok, kind):
    import transformers as t
    shape = dict(vocab_size=len(tok), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, initializer_range=0.3)
    c = dict(gpt2=lambda: t.GPT2Config(vocab_size=len(tok), n_embd=48, n_layer=2, n_head=4, n_positions=128, eos_token_id=tok.eos_token_id, initializer_range=0.3), qwen2=lambda: t.Qwen2Config(**shape, tie_word_embeddings=True),
             gqa=lambda: t.LlamaConfig(**shape), qwen3=lambda: t.Qwen3Config(**shape, head_dim=16))[kind]()
    torch.manual_seed(0)
    m = t.AutoModelForCausalLM.from_config(c).eval()
    m.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    e = load_engine(dict(model=str(tmp_path), batch_size=5))
    assert type(e.decoder).__name__ == ("LeanDecoder" if kind in ("qwen2", "gqa") else "ReferenceDecoder")
    tok = e.tokenizer                                          # transformers may read one tokenizer.json differently under another architecture
    prompts = [r["prompt"] * (1 + i % 3) for i, r in enumerate(ROWS[:12])]
    for p, ours in zip(prompts, e.generate(prompts, max_new_tokens=20)):
        x = tok(p, return_tensors="pt")
        y = m.generate(**x, do_sample=False, max_new_tokens=20, pad_token_id=tok.pad_token_id)[0, x["input_ids"].shape[1]:]
        assert ours.text == tok.decode(y, skip_special_tokens=True)
    assert np.allclose(e.logprobs(prompts[:3], [" 7"] * 3), load_engine(dict(model=str(tmp_path), lean=False)).logprobs(prompts[:3], [" 7"] * 3), atol=1e-3)


def test_composition_of_the_batch_changes_next_to_nothing(folder, capsys):
    "The same rows alone, in small and large batches, in another order: share of texts that are equal."
    prompts = [r["prompt"] for r in ROWS]
    key = lambda e, ps, n: {(ps[c.prompt_index], c.sample_index): c.text for c in e.generate(ps, n=n, temperature=1.0, max_new_tokens=24, seed=5)}
    full, same, total = key(load_engine(dict(model=str(folder), batch_size=512)), prompts, 10), 0, 0
    for batch, ps, n in ((1, prompts[:15], 4), (7, prompts, 10), (64, prompts[::-1], 10), (512, prompts[::2], 3)):
        part = key(load_engine(dict(model=str(folder), batch_size=batch)), ps, n)
        same, total = same + sum(full[k] == v for k, v in part.items()), total + len(part)
    with capsys.disabled(): print(f"\n{same} of {total} sampled texts equal across batch sizes and orders")
    assert same / total > 0.995


def test_interrupted_generation_continues_as_if_it_had_not_been(folder):
    prompts = [r["prompt"] for r in ROWS]
    e = load_engine(dict(model=str(folder), batch_size=64))
    whole = [c.text for c in e.generate(prompts, temperature=1.0, max_new_tokens=24, seed=1)]
    class Stop(Exception): pass
    def stop(done, total):
        if done > 70: raise Stop
    with pytest.raises(Stop): e.generate(prompts, temperature=1.0, max_new_tokens=24, seed=1, progress=stop)
    rest = [c.text for c in e.generate(prompts[64:], temperature=1.0, max_new_tokens=24, seed=1)]
    assert sum(a == b for a, b in zip(rest, whole[64:])) / len(rest) > 0.98
