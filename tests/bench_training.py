"""Training tokens per second: this package's loop, a bare PyTorch loop over the same batches, and transformers' Trainer; one thread, alternating.

    OMP_NUM_THREADS=1 python tests/bench_training.py [--sizes m l] [--rounds 3] [--trainer]

Times are processor seconds of one thread for one epoch (model and rows already in memory; our figure includes collation). Tokens are real ones: prompts, responses and EOS, no padding.
"bare": the model's own forward with labels, AdamW, clipping, on the same padded micro-batches of rows sorted by length. "unsorted": the same in the order drawn, 32 rows at a time."""
import argparse, copy, os, statistics, tempfile, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from mathrepro.tiny import make_tokenizer, tiny_config
from mathrepro.training import SFTConfig, World, encode_rows, fit, micro_batches, n_steps, step_rows
from mathrepro.world.problems import problems


def padded(rows, pad):
    T = max(len(r.ids) for r in rows)
    ids, labels = np.full((len(rows), T), pad), np.full((len(rows), T), -100)
    for i, r in enumerate(rows): ids[i, :len(r.ids)] = r.ids; labels[i, r.start:len(r.ids)] = r.ids[r.start:]
    return torch.from_numpy(ids), torch.from_numpy(labels)


def bare(model, rows, c, ordered):
    opt = torch.optim.AdamW(model.parameters(), lr=c.learning_rate, weight_decay=0.0)
    for step in range(n_steps(len(rows), c)):
        batch = [rows[i] for i in step_rows(len(rows), step, c)]
        groups = [[r for l in g for r in l] for g in micro_batches(batch, 2048)] if ordered else [batch[i:i + 32] for i in range(0, len(batch), 32)]
        n = sum(len(r.ids) - r.start for r in batch)
        for ids, labels in (padded(g, 0) for g in groups):
            model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(n), use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step(); opt.zero_grad()


def trainer(model, rows, c):
    from transformers import Trainer, TrainingArguments
    args = TrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=32, gradient_accumulation_steps=c.batch_size // 32, num_train_epochs=1, learning_rate=c.learning_rate, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True)
    data = [dict(row=r) for r in rows]
    def collator(items): ids, labels = padded([i["row"] for i in items], 0); return dict(input_ids=ids, labels=labels)
    args.remove_unused_columns = False
    Trainer(model, args, train_dataset=data, data_collator=collator).train()


def main():
    a = argparse.ArgumentParser(); a.add_argument("--sizes", nargs="+", default=["m", "l"]); a.add_argument("--rounds", type=int, default=3); a.add_argument("--rows", type=int, default=512); a.add_argument("--trainer", action="store_true")
    a = a.parse_args()
    from transformers import LlamaForCausalLM
    data = [dict(prompt=f"Question: {p['problem']}\nAnswer:\n", response=p["solution"]) for p in problems(a.rows, seed=5)]
    tok = make_tokenizer([r["prompt"] + r["response"] for r in data], 768)
    rows, _ = encode_rows(tok, data, 256)
    tokens, c = sum(len(r.ids) for r in rows), SFTConfig(epochs=1, batch_size=128, learning_rate=1e-3)
    print(f"{len(rows)} rows, {tokens / len(rows):.0f} tokens each, {sum(len(r.ids) - r.start for r in rows) / tokens:.0%} of them targets")
    for size in a.sizes:
        torch.manual_seed(0); first = LlamaForCausalLM(tiny_config(size, tok))
        runs = dict(ours=lambda m: fit(m, rows, Path(tempfile.mkdtemp()), c, World(c)), bare=lambda m: bare(m, rows, c, True), unsorted=lambda m: bare(m, rows, c, False))
        if a.trainer: runs["Trainer"] = lambda m: trainer(m, rows, c)
        speed = {k: [] for k in runs}
        for i in range(a.rounds + 1):                          # the first round warms up
            for name, run in runs.items():
                m = copy.deepcopy(first); t = time.process_time(); run(m)
                if i: speed[name].append(tokens / (time.process_time() - t))
        for name, v in speed.items():
            ratio = [x / y for x, y in zip(speed["ours"], v)]
            print(f"{size} {sum(p.numel() for p in first.parameters()) / 1e6:.2f}M  {name:>9} {statistics.median(v):>8,.0f} tok/s   ours/{name} {statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})", flush=True)


if __name__ == "__main__": main()
