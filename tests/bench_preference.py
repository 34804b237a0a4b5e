"""Training tokens per second through TRL's trainers and in a bare PyTorch loop over the same batches; one thread, alternating (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_preference.py [--sizes xs m] [--rounds 3] [--rows 512]

SFT: full-sequence loss on questions (QFT), 32 rows a batch; DPO: 16 pairs a batch, a reference beside the policy (QPO). Times are processor seconds of one epoch, from the first batch to the last step; models are in memory, rows are
tokenised, both sides pad their batches and clip, both use the fused AdamW. Tokens are real ones, prefix and EOS included, padding not. The bare loop takes the batches that TRL's loader gave, in its order, and must reach the same loss.
"set-up" is what a stage pays once: making the trainer (TRL's preparation of the rows) beside nothing in the bare loop."""
import argparse, copy, math, os, statistics, tempfile, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
torch.set_num_threads(1)
from mathrepro import preference as P
from mathrepro.models import load_model, load_tokenizer
from mathrepro.pretraining import shipped
from mathrepro.workers import Context
from mathrepro.world.problems import problems


def pad(lists, value):
    T = max(map(len, lists))
    return torch.tensor([l + [value] * (T - len(l)) for l in lists])


def step(model, opt, loss, rate):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for g in opt.param_groups: g["lr"] = rate
    opt.step(); opt.zero_grad()
    return loss.item()


def rates(n, c):
    warm = math.ceil(n * c.warmup)
    return [c.learning_rate * (i / warm if i < warm else 0.5 * (1 + math.cos(math.pi * (i - warm) / max(1, n - warm)))) for i in range(n)]


def bare_sft(model, batches, c):
    opt, out = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True), []
    for rows, rate in zip(batches, rates(len(batches), c)):
        ids, mask, labels = pad(rows, 0), pad([[1] * len(r) for r in rows], 0), pad(rows, -100)
        out.append(step(model, opt, model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss, rate))
    return out


def logps(model, ids, mask, target):
    lp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].log_softmax(-1)
    return (lp.gather(-1, ids[:, 1:, None])[..., 0] * target[:, 1:]).sum(1)


def bare_dpo(model, reference, batches, start, c):
    opt, out = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True), []
    for rows, rate in zip(batches, rates(len(batches), c)):
        ids, mask = pad(rows, 0), pad([[1] * len(r) for r in rows], 0)
        target = pad([[0] * start + [1] * (len(r) - start) for r in rows], 0)
        with torch.no_grad(): ref = logps(reference, ids, mask, target)
        better, worse = (logps(model, ids, mask, target) - ref).chunk(2)
        out.append(step(model, opt, -torch.nn.functional.logsigmoid(c.beta * (better - worse)).mean(), rate))
    return out


def through_trl(make, first):
    "(processor seconds of training, of set-up, losses, batches as lists of token ids)."
    ctx, seen = Context(tempfile.mkdtemp()), []
    t = time.process_time(); trainer = make(ctx, copy.deepcopy(first)); setup = time.process_time() - t
    collate = trainer.data_collator
    def keep(rows): batch = collate(rows); seen.append(batch); return batch
    trainer.data_collator = keep
    t = time.process_time(); done = P.run_trainer(trainer, ctx); t = time.process_time() - t
    lists = [[ids[:n].tolist() for ids, n in zip(b["input_ids"], b["attention_mask"].sum(1))] for b in seen]
    return t, setup, [h["loss"] for h in done["log"]], lists


def main():
    a = argparse.ArgumentParser(); a.add_argument("--sizes", nargs="+", default=["xs", "m"]); a.add_argument("--rounds", type=int, default=3); a.add_argument("--rows", type=int, default=512)
    a = a.parse_args()
    texts = [p["problem"] for p in problems(a.rows, seed=5)]
    P.trl_parts()
    for size in a.sizes:
        folder = shipped(size)
        tok, first = load_tokenizer(folder), load_model(folder)
        head = P.find_prefix(tok, "Question: ")
        sft = P.configured(P.QFTConfig, dict(batch_size=32, packing="none", learning_rate=1e-4))
        dpo = P.configured(P.QPOConfig, dict(batch_size=16, learning_rate=1e-5, warmup=0.1))
        coded, _ = P.usable_pairs([P.Pair(str(i), t, t + " Explain.", "difficulty", True) for i, t in enumerate(texts[: a.rows // 2])], tok, head, 1024)
        arm, rows = P.preferences(coded, "as given", 0), P.encode_questions(tok, head, texts)
        kinds = dict(SFT=(lambda ctx, m: P.sft_trainer(ctx, m, tok, rows, sft, 0), lambda m, b: bare_sft(m, b, sft)),
                     DPO=(lambda ctx, m: P.dpo_trainer(ctx, (m, copy.deepcopy(first).requires_grad_(False)), tok, head, arm, dpo, 0), lambda m, b: bare_dpo(m, first, b, len(head.ids), dpo)))
        for kind, (make, bare) in kinds.items():
            speed, setups = dict(trl=[], bare=[]), []
            for i in range(a.rounds + 1):                          # the first round warms up
                seconds, setup, losses, batches = through_trl(make, first)
                model = copy.deepcopy(first); t = time.process_time(); ours = bare(model, batches); t = time.process_time() - t
                gap = max(abs(x - y) for x, y in zip(losses, ours))
                assert len(losses) == len(ours) and gap < 1e-3, (losses, ours)
                tokens = sum(len(r) for b in batches for r in b)
                if i: speed["trl"].append(tokens / seconds); speed["bare"].append(tokens / t); setups.append(setup)
            ratio = [b / t for t, b in zip(*speed.values())]
            fast = {k: f"{statistics.median(v):,.0f}" for k, v in speed.items()}
            extra = 1000 * tokens * (1 / statistics.median(speed["trl"]) - 1 / statistics.median(speed["bare"])) / len(ours)
            print(f"{size} {sum(p.numel() for p in first.parameters()) / 1e6:.2f}M {kind}: TRL {fast['trl']} tok/s, bare {fast['bare']} tok/s; TRL takes {statistics.median(ratio):.2f} times as long ({min(ratio):.2f}-{max(ratio):.2f}), {extra:.1f} ms more a step of {tokens / len(ours):.0f} tokens; set-up {statistics.median(setups):.2f} s; largest difference of a loss {gap:.1e}", flush=True)


if __name__ == "__main__": main()
