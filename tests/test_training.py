"""Training across processes: killed and resumed, several processes, the command line."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from mathrepro.models import load_model
from mathrepro.tiny import make_model, make_tokenizer
from mathrepro.training import SFTConfig, train_sft

ROWS = [dict(prompt=f"{a} + {b} =", response=f" {a + b}\n#### {a + b}" + " so" * (a % 4)) for a in range(12) for b in range(10)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tok = make_tokenizer([r["prompt"] + r["response"] for r in ROWS], 280)
    return make_model("s", tok, tmp_path_factory.mktemp("base"), seed=0)


def spec(folder, base, out, **sft):
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    (folder / f"{out.name}.json").write_text(json.dumps(dict(model=str(base), rows=str(folder / "rows.jsonl"), out=str(out), sft=sft)))
    return ["-m", "mathrepro.training", "--config", str(folder / f"{out.name}.json")]


def environment(**kw): return dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", CUDA_VISIBLE_DEVICES="", **kw)


def files(folder): return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tmp_path, base):
    settings = dict(epochs=12, batch_size=16, learning_rate=2e-3, save_every=5, device="cpu")
    whole = subprocess.run([sys.executable, *spec(tmp_path, base, tmp_path / "whole", **settings)], env=environment(), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    command, kills = [sys.executable, *spec(tmp_path, base, tmp_path / "cut", **settings)], 0
    for marks in (1, 2):                                       # killed twice: each time once a newer checkpoint is there
        before = (tmp_path / "cut/.checkpoint").stat().st_mtime_ns if (tmp_path / "cut/.checkpoint").exists() else 0
        p = subprocess.Popen(command, env=environment())
        while p.poll() is None:
            c = tmp_path / "cut/.checkpoint"
            if c.exists() and c.stat().st_mtime_ns > before: p.send_signal(signal.SIGKILL); p.wait(); kills += 1
            time.sleep(0.002)
    assert kills >= 1
    last = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert json.loads(last.stdout)["steps"] == 96


STAGE = """
import sys
from pathlib import Path
from mathrepro.arms import train
from mathrepro.workers import Context
base, rows, folder = map(Path, sys.argv[1:])
train(Context(folder), base.parent, rows, dict(epochs=12, batch_size=16, learning_rate=2e-3, save_every=5, device="cpu"), "{problem}")
"""


def test_killed_stage_goes_on_from_its_checkpoint(tmp_path, base):
    from mathrepro.arms import TrainRow
    from mathrepro.records import write_table
    from mathrepro.workers import Context
    (tmp_path / "base").mkdir(); (tmp_path / "base/model").symlink_to(base)
    (tmp_path / "rows").mkdir(); write_table(tmp_path / "rows/rows.parquet", [TrainRow(str(i), r["prompt"], r["response"], "gold") for i, r in enumerate(ROWS)], TrainRow)
    command = lambda name: [sys.executable, "-c", STAGE, str(tmp_path / "base/model"), str(tmp_path / "rows"), str(tmp_path / name)]
    assert subprocess.run(command("whole"), env=environment()).returncode == 0
    p, checkpoint = subprocess.Popen(command("cut"), env=environment()), tmp_path / "cut/out/model/.checkpoint"
    while p.poll() is None and not checkpoint.exists(): time.sleep(0.002)
    p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode == -signal.SIGKILL
    Context(tmp_path / "cut")                                   # a new session keeps it
    assert checkpoint.exists()
    assert subprocess.run(command("cut"), env=environment()).returncode == 0
    assert files(tmp_path / "cut/out/model") == files(tmp_path / "whole/out/model") and not checkpoint.exists()


def test_checkpoint_of_other_settings_is_refused(tmp_path, base):
    (tmp_path / "out").mkdir()
    from mathrepro.config import UserError
    class Stop(Exception): pass
    class Ctx:
        def progress(self, it, total, desc):
            for i in it:
                if i == 3: raise Stop
                yield i
        def count(self, **kw): pass
    with pytest.raises(Stop): train_sft(base, ROWS, tmp_path / "out", SFTConfig(batch_size=16, save_every=2), ctx=Ctx())
    with pytest.raises(UserError, match="other rows or settings"): train_sft(base, ROWS[:50], tmp_path / "out", SFTConfig(batch_size=16, save_every=2))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_reach_the_same_weights_as_one(tmp_path, base, kind):
    settings = dict(epochs=1, batch_size=32, learning_rate=1e-3, max_length=64, micro_tokens=256, device="cpu", save_every=2)
    one = train_sft(base, ROWS, tmp_path / "one", SFTConfig(**settings))
    # torchrun is what `accelerate launch` starts; the launcher itself refuses FSDP together with --cpu
    fsdp = dict(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT", FSDP_RESHARD_AFTER_FORWARD="true")
    p = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *spec(tmp_path, base, tmp_path / "two", **settings)],
                       env=environment(ACCELERATE_USE_CPU="true", **(fsdp if kind == "fsdp" else {})), capture_output=True, text=True, timeout=240)
    assert p.returncode == 0, p.stderr[-3000:]
    two = json.loads(p.stdout.strip().splitlines()[-1])
    assert two["steps"] == one.steps and abs(two["loss"] - one.loss) < 1e-4
    a, b = load_model(tmp_path / "one").state_dict(), load_model(tmp_path / "two").state_dict()
    assert a.keys() == b.keys() and max((a[k] - b[k]).abs().max() for k in a) < 2e-4
    assert (tmp_path / "two/tokenizer.json").exists() and not list((tmp_path / "two").glob(".checkpoint*"))


def test_bfloat16_and_gradient_checkpointing_train(tmp_path, base):
    few = dict(epochs=2, batch_size=32, learning_rate=1e-3, max_length=64)
    plain = train_sft(base, ROWS, tmp_path / "a", SFTConfig(**few))
    check = train_sft(base, ROWS, tmp_path / "b", SFTConfig(**few, gradient_checkpointing=True))
    half = train_sft(base, ROWS, tmp_path / "c", SFTConfig(**few, dtype="bfloat16", packing=False))
    assert abs(plain.loss - check.loss) < 1e-4 and abs(plain.loss - half.loss) < 0.05
    assert load_model(tmp_path / "c", "bfloat16").dtype == torch.bfloat16 and json.loads((tmp_path / "c/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("change, says", [(dict(sft=dict(lr=1)), "unknown sft setting 'lr'"), (dict(sft=dict(schedule="step")), "choose cosine"), (dict(model="/nowhere"), "does not exist"), (dict(rows="/nowhere.jsonl"), "do not exist")])
def test_command_line_errors_are_one_line(tmp_path, base, change, says):
    spec(tmp_path, base, tmp_path / "out")
    s = tmp_path / "out.json"
    s.write_text(json.dumps({**json.loads(s.read_text()), **change}))
    p = subprocess.run([sys.executable, "-m", "mathrepro.training", "--config", str(s)], env=environment(), capture_output=True, text=True)
    assert p.returncode == 2 and says in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr
