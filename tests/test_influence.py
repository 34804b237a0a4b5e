"Influence across modules: against dattri-llm and against torch's own Adam, killed and resumed, checkpoints of the transformers Trainer, bad input."
import json, signal, subprocess, sys
import numpy as np, pytest, torch

from mathrepro import influence, warmup
from mathrepro.arms import TrainRow
from mathrepro.config import UserError
from mathrepro.datasets import load
from mathrepro.influence import feature_blocks, features, influence_scores, per_sample_gradients, task_scores, token_rows
from mathrepro.models import load_tokenizer
from mathrepro.pretraining import world_tokenizer
from mathrepro.records import read_rows, write_table
from mathrepro.tiny import make_model
from mathrepro.workers import Context

SMALL = dict(rank=4, alpha=16, fraction=1.0, epochs=2, batch_size=8, learning_rate=3e-3, device="cpu")

def rows_folder(folder, rows):
    folder.mkdir(); write_table(folder / "rows.parquet", rows, TrainRow)
    return folder

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A tiny model, its warm-up, and rows: 24 for training, 8 of a task."
    d = tmp_path_factory.mktemp("influence")
    (d / "base").mkdir(); make_model("xs", world_tokenizer(), d / "base/model", seed=0)
    rows = [TrainRow(p.id, p.problem, p.solution, "gold") for p in load("world", "train", n=32, seed=0)]
    train, task = rows_folder(d / "train", rows[:24]), rows_folder(d / "task", rows[24:])
    warmup.warm_up(ctx := Context(d / "warm"), d / "base", train, SMALL, "plain")
    return dict(base=d / "base", warm=ctx.out, train=train, task=task, rows=rows)

def make(where, made, rows="train", form="adam", warm=None, **settings):
    features(ctx := Context(where), made["base"], warm or made["warm"], made[rows] if isinstance(rows, str) else rows, form, "plain", dict(dict(device="cpu", store="float32"), **settings))
    return ctx.out

def mean_per_row(model, batch):
    "Sum over the rows of a batch of the mean loss per completion token; the row's own loss in batches of one."
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return (each.sum(1) / (batch["labels"][:, 1:] != -100).sum(1)).sum()

def test_agrees_with_dattri_llm(made, tmp_path):
    "Two frozen checkpoints, Adam as torch has it (eps outside the root, bias correction), cosines weighted by learning rates."
    pytest.importorskip("dattri_llm", reason="dattri-llm is not installed: pip install dattri-llm==0.1.0")
    from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, LESSAttributor
    tok, total = load_tokenizer(made["base"] / "model"), 0
    ready = token_rows(tok, made["rows"], "plain", 512)
    def data(rows): return [dict(input_ids=torch.tensor(i), labels=torch.tensor([-100] * s + i[s:]), attention_mask=torch.ones(len(i), dtype=torch.long)) for i, s, _ in rows]
    for n, ck in enumerate(warmup.checkpoints_in(made["warm"])):
        model, names = warmup.open_checkpoint(made["base"] / "model", ck)
        weights = {k: p.requires_grad_() for k, p in model.named_parameters() if k in names}
        moments, opt = warmup.read_moments(ck, weights), torch.optim.AdamW(weights.values(), lr=1e-3)
        for k, p in weights.items(): opt.state[p] = dict(step=torch.tensor(float(warmup.steps_of(ck))), exp_avg=moments[f"m.{k}"], exp_avg_sq=moments[f"v.{k}"])
        args = AttributionArguments(output_dir=str(tmp_path / f"dattri-{n}"), per_device_train_batch_size=1, per_device_eval_batch_size=1)
        less = LESSAttributor(args, task=AttributionTask(mean_per_row, model), optimizers=[opt], checkpoint_weights=[warmup.learning_rate_of(ck)])
        score = less.attribute(data(ready[:24]), data(ready[24:]), hook_config=HookManagerConfig(linear_io=[r"lora_[AB]\.default$"]))
        total = total + score.agnostic_matrix()[1].double().numpy()          # (24, 8), in the order read
    total /= sum(warmup.learning_rate_of(ck) for ck in warmup.checkpoints_in(made["warm"]))
    how = dict(eps_position="outside", bias_correction=True, projection="none")
    train, task = make(tmp_path / "a", made, **how), make(tmp_path / "b", made, "task", "plain", **how)
    ours = task_scores(train, [(task, [k]) for k in range(8)])
    assert np.abs(ours).max() > 0.05 and np.abs(ours - total).max() < 1e-5, np.abs(ours - total).max()

def test_projection_keeps_the_cosines_of_real_gradients(made, tmp_path):
    "Both projections keep the cosines of Adam directions up to the noise of their dimension; a folder's scores are those of whole gradients."
    exact = np.concatenate([x for _, x in feature_blocks(make(tmp_path / "none", made, projection="none"), 1)])
    for kind in ("hashed", "dense"):
        wrong = []
        for seed in range(4):
            found = np.concatenate([x for _, x in feature_blocks(make(tmp_path / f"{kind}{seed}", made, projection=kind, dim=1024, seed=seed), 1)])
            wrong.append((found @ found.T - exact @ exact.T)[np.triu_indices(24, 1)])
        assert np.std(wrong) < 1.3 / 32 and abs(np.mean(wrong)) < 0.5 / 32, (kind, np.std(wrong), np.mean(wrong))

def test_score_is_the_formula(made, tmp_path):
    "Sum over checkpoints of the weight times the mean cosine, then the largest task; half precision and shards change nothing that matters."
    train, task = make(tmp_path / "a", made, projection="none"), make(tmp_path / "b", made, "task", "plain", projection="none")
    weights = json.loads((made["warm"] / "warm_up.json").read_text())["weights"]
    x, y = ([np.concatenate([b for _, b in feature_blocks(f, k)]) for k in range(2)] for f in (train, task))
    tasks = [range(0, 5), range(5, 8)]
    want = np.max([sum(w * (a @ b[list(t)].T).mean(1) for w, a, b in zip(weights, x, y)) for t in tasks], 0)
    assert np.allclose(influence_scores(train, [(task, list(t)) for t in tasks]), want, atol=1e-6)
    half, others = make(tmp_path / "c", made, projection="none", store="float16", shard=7, batch_tokens=256), make(tmp_path / "d", made, "task", "plain", projection="none", store="float16", shard=3)
    assert len(list(half.glob("features-1-*.npy"))) == 4
    assert np.allclose(influence_scores(half, [(others, list(t)) for t in tasks]), want, atol=2e-4)
    influence.score(ctx := Context(tmp_path / "s"), train, [task])
    assert [s.score for s in read_rows(ctx.out / "scores.parquet", influence.RowScore)] == pytest.approx(list(influence_scores(train, [task])))

@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma2"])
def test_any_architecture(kind, made):
    "Batched gradients equal autograd's one by one, whatever the architecture, for adapters on every linear layer."
    from transformers import AutoConfig, AutoModelForCausalLM
    sizes = dict(n_embd=32, n_layer=2, n_head=2) if kind == "gpt2" else dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48, head_dim=16)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=1024, **sizes)).eval()
    model = warmup.with_adapters(model, warmup.warm_up_config(dict(SMALL, dropout=0.0, targets="all-linear"))).eval()
    weights = warmup.trainable(model)
    for n, p in weights.items():
        if "lora_B" in n: p.data.normal_(0, 0.02)
    rows = token_rows(load_tokenizer(made["base"] / "model"), made["rows"][:5], "plain", 512)
    slow = []
    for ids, start, _ in rows:
        x = torch.tensor([ids]); labels = x.clone(); labels[0, :start] = -100
        slow.append(torch.cat([g.flatten() for g in torch.autograd.grad(model(x, labels=labels).loss, list(weights.values()))]))
    slow, names = torch.stack(slow), list(weights)
    model.requires_grad_(False)
    assert torch.allclose(per_sample_gradients(model, names, rows), slow, atol=2e-6)
    model.merge_adapter()
    assert torch.allclose(per_sample_gradients(model, names, rows), slow, atol=2e-6)

KILLED = """
import os, signal, sys
from pathlib import Path
from mathrepro.influence import features
from mathrepro.workers import Context
out, base, warm, rows = map(Path, sys.argv[1:])
ctx, whole = Context(out), Context.commit
def commit(self, path, data):
    whole(self, path, data)
    if Path(path).name == "features-2-00000.npy": os.kill(os.getpid(), signal.SIGKILL)
Context.commit = commit
features(ctx, base, warm, rows, "adam", "plain", dict(shard=8, dim=512, device="cpu"))
"""

def test_killed_features_go_on(made, tmp_path):
    "kill -9 in the middle of the second checkpoint: the next run makes only what is missing, and the same bytes."
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, (tmp_path / "a", made["base"], made["warm"], made["train"]))], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a/out").glob("features-*.npy")}
    assert sorted(before) == ["features-1-00000.npy", "features-1-00001.npy", "features-1-00002.npy", "features-2-00000.npy"]
    again, fresh = make(tmp_path / "a", made, shard=8, dim=512, store="float16"), make(tmp_path / "b", made, shard=8, dim=512, store="float16")
    assert all((again / n).stat().st_mtime_ns == t for n, t in before.items())
    for p in fresh.iterdir(): assert p.read_bytes() == (again / p.name).read_bytes(), p.name

def test_checkpoints_of_the_trainer_and_of_less(made, tmp_path):
    "A folder as the transformers Trainer leaves it (moments by number), and one with moments by name, give the same features."
    from safetensors.torch import load_file
    want = make(tmp_path / "want", made, projection="none")
    model, names = warmup.open_checkpoint(made["base"] / "model", warmup.checkpoints_in(made["warm"])[0])
    for kind, file, key in (("trainer", "optimizer.pt", lambda i, n: i), ("less", "optimizer.bin", lambda i, n: n)):
        for number, ck in enumerate(warmup.checkpoints_in(made["warm"]), 1):
            to = tmp_path / kind / f"checkpoint-{number * 3}"; to.mkdir(parents=True)
            for f in ("adapter_config.json", "adapter_model.safetensors"): (to / f).write_bytes((ck / f).read_bytes())
            moments = load_file(ck / "optimizer.safetensors")
            torch.save(dict(state={key(i, n): dict(step=3 * number, exp_avg=moments[f"m.{n}"], exp_avg_sq=moments[f"v.{n}"]) for i, n in enumerate(names)}, param_groups=[]), to / file)
            log = [dict(epoch=number - 1 + e, learning_rate=1e-5 * number) for e in (0.5, 1.0)]
            (to / "trainer_state.json").write_text(json.dumps(dict(epoch=float(number), global_step=3 * number, log_history=log)))
        found = make(tmp_path / f"f-{kind}", made, warm=tmp_path / kind, projection="none")
        for p in want.glob("features-*.npy"): assert (found / p.name).read_bytes() == p.read_bytes()
        assert [c["learning_rate"] for c in json.loads((found / "features.json").read_text())["checkpoints"]] == pytest.approx([1e-5, 2e-5])

def test_gradients_that_are_no_numbers(made, tmp_path):
    "A poisoned token makes the rows that hold it NaN and no others: named, counted, NaN in the scores; refused on request."
    import shutil
    from safetensors.torch import load_file, save_file
    base = tmp_path / "base"; shutil.copytree(made["base"], base)
    weights = base / "model/model.safetensors"
    tok, state = load_tokenizer(base / "model"), load_file(weights)
    word = next(t for t in token_rows(tok, made["rows"][:1], "plain", 512)[0][0] if any(t not in r[0] for r in token_rows(tok, made["rows"], "plain", 512)))
    state["model.embed_tokens.weight"][word] = float("nan")
    if "lm_head.weight" not in state: state["lm_head.weight"] = torch.nan_to_num(state["model.embed_tokens.weight"])
    save_file(state, weights, metadata={"format": "pt"})
    config = json.loads((base / "model/config.json").read_text()); (base / "model/config.json").write_text(json.dumps(dict(config, tie_word_embeddings=False)))
    poisoned = dict(made, base=base)
    hit = [word in i[:-1] for i, *_ in token_rows(tok, made["rows"][:24], "plain", 512)]
    assert 0 < sum(hit) < 24
    out = make(tmp_path / "out", poisoned)
    about, rows = json.loads((out / "features.json").read_text()), read_rows(out / "rows.parquet", influence.FeatureRow)
    assert [r.status == "nan" for r in rows] == hit and about["counts"]["nan"] == sum(hit) == len(about["nan"])
    task = rows_folder(tmp_path / "task", [r for r, h in zip(made["rows"][:24], hit) if not h])
    assert np.isnan(influence_scores(out, [make(tmp_path / "t", poisoned, task, "plain")])).tolist() == hit
    with pytest.raises(UserError, match="is not a number at checkpoint epoch-1"): make(tmp_path / "refused", poisoned, nan="refuse")

def test_bad_input_is_one_clear_line(made, tmp_path):
    import shutil
    long = rows_folder(tmp_path / "long", [TrainRow("long-one", "How many?", "and " * 300, "gold"), *made["rows"][:2]])
    bare = tmp_path / "bare"; shutil.copytree(made["warm"], bare)
    for f in bare.rglob("optimizer.safetensors"): f.unlink()
    other = tmp_path / "other"; shutil.copytree(made["warm"], other)
    from safetensors.torch import load_file, save_file
    f = next(other.rglob("optimizer.safetensors")); save_file({k: v[:1].clone() for k, v in load_file(f).items()}, f)
    empty = rows_folder(tmp_path / "empty", [])
    cases = {"row long-one has .* tokens, more than max_length = 100": lambda: make(tmp_path / "1", made, long, max_length=100),
             "has no optimiser state": lambda: make(tmp_path / "2", made, warm=bare),
             "has another shape": lambda: make(tmp_path / "3", made, warm=other),
             "no layer query": lambda: warmup.warm_up(Context(tmp_path / "4"), made["base"], made["train"], dict(SMALL, targets=["query"]), "plain"),
             "no rows": lambda: make(tmp_path / "5", made, empty),
             "no setting 'dims'; did you mean dim": lambda: make(tmp_path / "6", made, dims=3),
             "holds no checkpoint": lambda: make(tmp_path / "7", made, warm=made["train"]),
             "cannot be compared": lambda: influence_scores(make(tmp_path / "8", made, dim=256), [make(tmp_path / "9", made, "task", "plain", dim=512)]),
             "holds no features": lambda: influence_scores(made["warm"], [made["warm"]])}
    for text, call in cases.items():
        with pytest.raises(UserError, match=text) as e: call()
        assert "\n" not in str(e.value) and str(tmp_path) not in str(e.value)
    make(tmp_path / "plain", made, warm=bare, form="plain")                          # plain gradients need no optimiser
    out = make(tmp_path / "cut", made, long, max_length=100, long="cut")
    assert [r.status for r in read_rows(out / "rows.parquet", influence.FeatureRow)] == ["cut", "ok", "ok"]
    out = make(tmp_path / "drop", made, long, max_length=100, long="drop")
    assert json.loads((out / "features.json").read_text())["counts"] == {"ok": 2, "too long": 1}
