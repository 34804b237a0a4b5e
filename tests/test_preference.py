"Question generators as stages: workers, kills, no network, TRL beside a hand-written loss. Function-level tests are in nbs/31b."
import json, math, os, signal, socket, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, preference as P
from mathrepro.config import UserError, home
from mathrepro.keys import file_hash
from mathrepro.records import Problem, read_rows, unique_ids, write_table
from mathrepro.runs import Run
from mathrepro.workers import Context, close_workers

QFT = dict(batch_size=16, micro_rows=8, learning_rate=2e-3, packing="none", max_length=128)
QPO = dict(batch_size=16, micro_rows=8, learning_rate=2e-4, warmup=1, max_length=128, held_out=20)

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def world_pairs(ctx, problems: Path):
    "A stand-in for rewriting: the same question with another name; every seventh fails, every ninth is unchanged."
    rows = read_rows(problems / "problems.parquet", Problem)
    made = [P.Pair(p.id, p.problem, "" if i % 7 == 0 else p.problem if i % 9 == 0 else "Zoe asks: " + p.problem, "difficulty" if i % 2 else "solvability", i % 7 > 0, "no question in the reply" if i % 7 == 0 else "") for i, p in enumerate(rows)]
    write_table(ctx.out / "pairs.parquet", made, P.Pair)

def chain(place, workers=1, n=200, shard=1024, sample=1200, max_new_tokens=80):
    run = Run("toy", workers=workers, home=place, progress="quiet")
    base = run.stage("base", arms.base_model, model="world:xs")
    seeds = run.stage("seeds", arms.load_problems, dataset="world", split="train", n=n, seed=1)
    pairs = run.stage("pairs", world_pairs, problems=seeds)
    g = run.stage("qft", P.qft, base=base, problems=seeds, prefix="Question: ", settings=QFT, seed=1)
    d = {labels: run.stage(f"qpo/{labels}", P.qpo, base=g, pairs=pairs, prefix="Question: ", settings=QPO, seed=1, labels=labels) for labels in P.LABELS[:2]}
    q = run.stage("ask", P.sample_questions, model=d["as given"], n=sample, prefix="Question: ", engine=dict(engine="transformers", batch_size=256), max_new_tokens=max_new_tokens, seed=2, shard=shard, generator="qpo")
    plain = run.stage("ask plain", P.sample_questions, model=g, n=300, prefix="Question: ", engine=dict(engine="transformers"), max_new_tokens=80, seed=2, generator="qft")
    m = run.stage("mix", P.mix, folders=[q, plain], n=100, seed=0)
    return run, dict(base=base, seeds=seeds, pairs=pairs, qft=g, qpo=d["as given"], random=d["random"], ask=q, plain=plain, mix=m)

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = chain(tmp_path_factory.mktemp("preference"), workers=2)
    run.compute(list(s.values()))
    return run, s

def test_chain(done):
    run, s = done
    t, m = s["qpo"].json("training.json"), s["qpo"].json("metrics.json")
    assert t["counts"]["failed"] == 29 and t["counts"]["unchanged"] == 19 and t["counts"]["pairs"] == 200 and t["lengths"]["preferred_longer"] == 1
    assert m["pairs"] == 20 and m["after"]["reward_accuracy"] > 0.9 > m["before"]["reward_accuracy"] == 0.5 and set(m["by_direction"]) == {"difficulty", "solvability"}
    assert s["random"].json("metrics.json")["after"]["reward_margin"] < m["after"]["reward_margin"]
    assert s["random"].json("metrics.json")["before"] == m["before"], "both arms are measured on the same pairs"
    ledger = {r["name"]: r for r in run.ledger()}
    assert ledger["qft"]["tokens_in"] == s["qft"].json("training.json")["tokens"] and ledger["qpo/as given"]["flops"] > 0 and ledger["ask"]["tokens_out"] > 0
    asked, problems = P.read_generated(s["ask"].path), read_rows(s["ask"].file("problems.parquet"), Problem)
    assert len(asked) == 1200 and len({q.text for q in asked}) > 900 and len({p.id for p in problems}) == len(problems) == s["ask"].json("metrics.json")["kept"]
    mixed = read_rows(s["mix"].file("problems.parquet"), Problem)
    assert {p.source: sum(q.source == p.source for q in mixed) for p in mixed} == {"qpo": 50, "qft": 50}
    assert not any(f.name.startswith(("checkpoint", "runs", "trainer")) for f in s["qpo"].path.rglob("*"))

def test_another_process_trains_the_same(done, tmp_path):
    run, s = chain(tmp_path, workers=1)
    run.compute([s["qpo"], s["qft"]])
    for k in ("qft", "qpo"): assert file_hash(s[k].path / "model" / "model.safetensors") == file_hash(done[1][k].path / "model" / "model.safetensors"), k

def test_killed_sampling_goes_on(done, tmp_path):
    "Killed between two shards and resumed with other shards, the questions are those of an undisturbed run."
    want = dict(sample=4096, max_new_tokens=40)
    call = lambda place, shard: f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_preference as t; run, s = t.chain({str(place)!r}, shard={shard}, **{want!r}); run.compute([s['ask']])"
    run, s = chain(tmp_path / "calm", shard=4096, **want); run.compute([s["ask"]])
    p = subprocess.Popen([sys.executable, "-c", call(tmp_path / "killed", 1024)])
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("killed/work/*/out/questions-*")) and p.poll() is None and time.monotonic() < deadline: time.sleep(0.01)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -9, "it was killed while it ran"
    again, resumed = chain(tmp_path / "killed", shard=1024, **want); again.compute([resumed["ask"]])
    assert P.read_generated(resumed["ask"].path) == P.read_generated(s["ask"].path)
    assert file_hash(resumed["ask"].file("problems.parquet")) == file_hash(s["ask"].file("problems.parquet"))
    assert next(r for r in again.ledger() if r["name"] == "ask")["sessions"] > 1

def write_inputs(place, n=96):
    "Folders of a small base model, its seed problems and pairs, as stages leave them."
    base, seeds, pairs = (Context(place / name) for name in ("base", "seeds", "pairs"))
    arms.base_model(base, "world:xs"); arms.load_problems(seeds, "world", "train", n=n, seed=1); world_pairs(pairs, seeds.out)
    return base.out, seeds.out, pairs.out

def stage(what, place, inputs, **settings):
    "One training stage in the folder `place`; returns its output folder."
    base, seeds, pairs = inputs
    ctx = Context(place)
    if what == "qft": P.qft(ctx, base, seeds, "Question: ", {**QFT, "epochs": 3, **settings}, seed=1)
    else: P.qpo(ctx, base, pairs, "Question: ", {**QPO, "epochs": 3, **settings}, seed=1)
    return ctx.out

def same_output(a, b):
    files = sorted(str(f.relative_to(a)) for f in a.rglob("*") if f.is_file())
    assert files == sorted(str(f.relative_to(b)) for f in b.rglob("*") if f.is_file()) and "model/model.safetensors" in files
    for f in files: assert file_hash(a / f) == file_hash(b / f), f

@pytest.mark.parametrize("what, settings", [("qft", {}), ("qft", dict(packing="bfd")), ("qpo", {})])
def test_killed_training_goes_on(what, settings, tmp_path, monkeypatch):
    "Killed after a checkpoint in the second epoch, training goes on from there, and ends with the bytes of a training that nobody disturbed: RNG, order of rows, counts."
    inputs, how = write_inputs(tmp_path), dict(settings, save_every=2)
    calm, place = stage(what, tmp_path / "calm", inputs, **how), tmp_path / "killed"
    total = json.loads((calm / "training.json").read_text())["steps"]
    call = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_preference as t; from pathlib import Path; t.stage({what!r}, Path({str(place)!r}), tuple(map(Path, {tuple(map(str, inputs))!r})), **{how!r})"
    p, late = subprocess.Popen([sys.executable, "-c", call]), 2 * math.ceil(total / 4)
    deadline = time.monotonic() + 240
    while not (place / "scratch" / "trl" / f"checkpoint-{late}" / "trainer_state.json").exists() and p.poll() is None and time.monotonic() < deadline: time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -9, "it was killed while it trained"
    found, real = [], P.last_checkpoint
    monkeypatch.setattr(P, "last_checkpoint", lambda *a: found.append(real(*a)) or found[-1])
    same_output(stage(what, place, inputs, **how), calm)
    assert len(found) == 1 and found[0] and int(found[0].rsplit("-", 1)[1]) >= late - 2, "it went on from a checkpoint"
    assert not (place / "scratch" / "trl").exists()

@pytest.mark.parametrize("what", ["qft", "qpo"])
def test_two_processes_train_as_one(what, tmp_path):
    "Two processes on the CPU: the same steps, tokens and, but for rounding, losses as one process; errors come through as one line. (Batches are full: accelerate would fill a last one with rows from the beginning.)"
    from toys import script
    inputs, launch = write_inputs(tmp_path, 64), f"{script('torchrun')} --standalone --nproc_per_node 2"      # what `accelerate launch` starts on GPUs; with --cpu it starts one process
    one, two = (json.loads((stage(what, tmp_path / name, inputs, max_steps=4, device="cpu", **more, **({} if what == "qft" else dict(limit=32))) / "training.json").read_text()) for name, more in (("one", {}), ("two", dict(launch=launch))))
    assert one["steps"] == two["steps"] == 4 and one["tokens"] == two["tokens"]
    losses = lambda t: t["losses"] if what == "qft" else t["log"]["loss"]
    np.testing.assert_allclose(losses(one), losses(two), rtol=2e-4)
    if what == "qft":
        with pytest.raises(UserError, match="batch_size 15 cannot be shared by 2 processes") as e: stage(what, tmp_path / "odd", inputs, batch_size=15, device="cpu", launch=launch)
        assert "\n" not in str(e.value)
        with pytest.raises(UserError, match="cannot be started"): stage(what, tmp_path / "absent", inputs, device="cpu", launch="no-such-launcher --now")

def test_trl_computes_the_published_losses(done, tmp_path):
    "The first losses of both trainers beside formulas written out here, with a reference that is not the policy."
    import torch
    from mathrepro.models import load_model, load_tokenizer
    s = done[1]
    tok, policy, reference = load_tokenizer(s["base"].path / "model"), load_model(s["qpo"].path / "model"), load_model(s["base"].path / "model")
    head = P.find_prefix(tok, "Question: ")
    coded, _ = P.usable_pairs(read_rows(s["pairs"].file("pairs.parquet"), P.Pair), tok, head, 128)
    arm, c = P.preferences(coded[:16], "random", 0), P.configured(P.QPOConfig, dict(QPO, batch_size=16, max_steps=1, beta=0.3))
    def logp(model, ids):
        with torch.no_grad(): lp = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return lp.gather(1, torch.tensor(ids[1:])[:, None])[len(head.ids)-1:, 0].sum().item()
    sides = [(p.rewritten, p.original) if r else (p.original, p.rewritten) for p, r in arm]
    margins = np.array([logp(policy, a) - logp(reference, a) - logp(policy, b) + logp(reference, b) for a, b in sides])
    want = np.log1p(np.exp(-0.3 * margins)).mean()
    got = P.run_trainer(P.dpo_trainer(Context(tmp_path), (policy, reference), tok, head, arm, c, 0), Context(tmp_path))["log"][0]
    assert got["loss"] == pytest.approx(want, rel=1e-4) and got["rewards/margins"] == pytest.approx(0.3 * margins.mean(), rel=1e-3)

def test_nothing_leaves_this_computer(done, tmp_path, monkeypatch):
    "No connection is tried and nothing waits in the queue of usage reports, although TRL reports by default and CI may silence it."
    from huggingface_hub.utils import _telemetry
    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, where: tried.append(where))
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: tried.append("usage report"))
    for name in ("CI", "HF_HUB_OFFLINE"): monkeypatch.delenv(name, raising=False)
    s = done[1]
    P.qft(Context(tmp_path / "a"), s["base"].path, s["seeds"].path, "Question: ", dict(QFT, max_steps=1))
    P.qpo(Context(tmp_path / "b"), s["base"].path, s["pairs"].path, "Question: ", dict(QPO, max_steps=1))
    assert not tried and not any(tmp_path.rglob("checkpoint*"))

def test_smollm2_chat_prefix():
    "A real chat template: prefix tokens, one end, and what an engine reads is what training read."
    from mathrepro.models import load_tokenizer
    folders = [p for p in (home() / "models" / "smollm2-135m", Path(__file__).parent.parent / "runs" / "models" / "smollm2-135m") if (p / "tokenizer.json").exists()]
    if not folders: pytest.skip("the SmolLM2 tokenizer is not here")
    tok = load_tokenizer(folders[0])
    head = P.find_prefix(tok)
    assert head.text.endswith("<|im_start|>user\n") and head.joint == "" and head.ids == tuple(tok(head.text)["input_ids"])
    ids = P.encode_questions(tok, head, ["Tom has 3 apples.", "$x^2=4$", "(a) Find x."])
    assert all(tuple(i[:len(head.ids)]) == head.ids and i[-1] == tok.eos_token_id and i[len(head.ids):].count(tok.eos_token_id) == 1 for i in ids)
    for bad, why in ((None, "without a template"), ("{{ messages[0]['content'] }}", "nothing stands before")):
        tok.chat_template = bad
        with pytest.raises(UserError, match=f"no generation prefix: .*{why}") as e: P.find_prefix(tok)
        assert "\n" not in str(e.value)

def test_bad_input_ends_a_run_with_one_line(tmp_path, done):
    s = done[1]
    write_table(tmp_path / "same" / "pairs.parquet", [P.Pair(f"{i}", "Tom", "Tom", "difficulty", True) for i in range(5)], P.Pair)
    write_table(tmp_path / "none" / "pairs.parquet", [], P.Pair)
    base = s["base"].path
    for pairs, labels, settings, why in (("same", "as given", QPO, r"no pair is left to learn from \(pairs: 5, unchanged: 5\)"), ("none", "as given", QPO, "holds no rows"), (s["pairs"].path, "length-matched", QPO, "after matching lengths"),
                                         (s["pairs"].path, "shuffled", QPO, "labels 'shuffled' is unknown"), (s["pairs"].path, "as given", dict(lr=1), "no setting 'lr'")):
        with pytest.raises(UserError, match=why) as e: P.qpo(Context(tmp_path / "x"), base, tmp_path / pairs, "Question: ", settings, labels=labels)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="does not exist|No such|no Parquet"): P.qpo(Context(tmp_path / "y"), base, tmp_path / "absent", "Question: ", QPO)
