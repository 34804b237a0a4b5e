"""Influence features beside LESS's own way, one row at a time, on the same checkpoint, rows and machine: examples per second, agreement of scores, memory of the projection.
    OMP_NUM_THREADS=1 python tests/bench_influence.py [world:m | world:m/less | smollm2-135m] [training rows] [task rows]     one to four minutes of one core each; prints tables
The loop is LESS's arithmetic: batch 1 through autograd, all logits, one long gradient vector, Adam's direction, projection of 16 vectors at a time. Its dense projection is this package's own blocked kernel."""
import subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd, torch
from scipy.stats import spearmanr
from transformers.utils import logging

from mathrepro import arms, influence, warmup
from mathrepro.arms import TrainRow
from mathrepro.datasets import load
from mathrepro.influence import Featurizer, batches_of, influence_scores, token_rows
from mathrepro.models import load_tokenizer
from mathrepro.projections import Projection, add_projected, project
from mathrepro.records import write_table
from mathrepro.workers import Context

SETTINGS = {"world:m/less": dict(warm=dict(fraction=1.0, epochs=1, batch_size=8, learning_rate=1e-3), dim=8192, rows=64, tasks=16),                                      # rank and dimensions of LESS
            "world:m": dict(warm=dict(rank=8, alpha=32, fraction=1.0, epochs=1, batch_size=8, learning_rate=1e-3), dim=2048, rows=256, tasks=32),
            "smollm2-135m": dict(warm=dict(alpha=512, fraction=1.0, epochs=1, batch_size=8, learning_rate=2e-5, max_length=512), dim=8192, rows=24, tasks=8)}     # rank 128, q k v o: as LESS

def peak_mib(fn):
    "(result, MiB by which the process grew at its largest while `fn()` ran)."
    def status(key): return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) / 1024
    Path("/proc/self/clear_refs").write_text("5")          # forget the old peak
    before, out = status("VmRSS:"), fn()
    return out, status("VmHWM:") - before

def timed(fn):
    began = time.process_time()           # of this process's one thread: the machine may be shared
    out = fn()
    return out, time.process_time() - began

class Loop:
    "One row at a time, as LESS's get_info.py."
    def __init__(self, base, checkpoint):
        self.model, self.names = warmup.open_checkpoint(base, checkpoint)
        self.weights = [p.requires_grad_() for n, p in self.model.named_parameters() if n in set(self.names)]
        moments = warmup.read_moments(checkpoint, dict(zip(self.names, self.weights)))
        self.m, self.v = (torch.cat([moments[f"{k}.{n}"].flatten() for n in self.names]) for k in "mv")
    def gradient(self, row):
        ids = torch.tensor([row[0]])
        labels = ids.clone(); labels[0, :row[1]] = -100
        self.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        g = torch.cat([p.grad.view(-1) for p in self.weights])
        self.model.zero_grad()
        return g
    def direction(self, g):
        m, v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        return m / torch.sqrt(v + 1e-8)
    def features(self, rows, adam, p=None, chunk=16):
        out, held = [], []
        for i, row in enumerate(rows):
            g = self.gradient(row)
            held.append(self.direction(g) if adam else g)
            if p is not None and (len(held) == chunk or i == len(rows) - 1): out.append(project(torch.stack(held), p)); held = []
            elif p is None: held = []                       # gradients alone
        return torch.nn.functional.normalize(torch.cat(out), dim=1).numpy() if out else None

def ours(f, rows, budget=1024):
    out = None
    for group in batches_of([len(r[0]) - 1 for r in rows], budget):
        x = f([rows[k] for k in group])[0].numpy()
        out = np.zeros((len(rows), x.shape[1]), np.float32) if out is None else out
        out[group] = x
    return out

def prepared(name, n, tasks, folder):
    "base, checkpoint and token rows of a model."
    s = SETTINGS[name]
    problems = load("world", "train", n=n + tasks, seed=0)
    rows = [TrainRow(p.id, p.problem, p.solution, "gold") for p in problems]
    (folder/"rows").mkdir(); write_table(folder/"rows/rows.parquet", rows[:min(n, 64)], TrainRow)
    arms.base_model(base := Context(folder/"base"), name.split("/")[0])
    warmup.warm_up(warm := Context(folder/"warm"), base.out, folder/"rows", s["warm"], "plain")
    tok = load_tokenizer(base.out/"model")
    ready = token_rows(tok, rows, "plain", 512, "cut")
    return base.out/"model", warmup.checkpoints_in(warm.out)[-1], ready[:n], ready[n:]

def measure(name, n=None, tasks=None):
    s, folder = SETTINGS[name], Path(tempfile.mkdtemp())
    n, tasks = n or s["rows"], tasks or s["tasks"]
    base, checkpoint, train, task = prepared(name, n, tasks, folder)
    loop = Loop(base, checkpoint)
    size, dim = len(loop.m), s["dim"]
    model, names = warmup.open_checkpoint(base, checkpoint)
    f = {(adam, kind): Featurizer(model, names, Projection(kind, dim), loop_moments(loop) if adam else None) for adam in (True, False) for kind in ("hashed", "none")}
    print(f"{name}: {sum(p.numel() for p in loop.model.parameters()):,} weights, adapter {size:,}, dim {dim:,}, {n} training rows of {np.mean([len(r[0]) for r in train]):.0f} tokens, {tasks} task rows, {torch.get_num_threads()} thread(s)")
    loop.features(train[:2], True); f[True, "hashed"](train[:2])                                   # warm caches
    table, scores = [], {}
    def line(what, rows, run):
        x, t = timed(run)
        table.append(dict(what=what, rows=rows, cpu_seconds=t, per_second=rows / t))
        print(f"  {what}: {t:.1f} s", flush=True)
        return x
    line("loop: gradients and Adam's directions only", n, lambda: loop.features(train, True))
    line("batched: gradients and Adam's directions, hashed", n, lambda: ours(f[True, "hashed"], train))
    p = {kind: Projection(kind, dim) for kind in ("hashed", "dense")}
    scores["loop, hashed"] = influence_scores([line("loop, this package's hashed projection", n, lambda: loop.features(train, True, p["hashed"]))], [[loop.features(task, False, p["hashed"])]], [1.0])
    if size * dim * n < 2e11: scores["loop, dense"] = influence_scores([line("loop, dense projection (LESS)", n, lambda: loop.features(train, True, p["dense"]))], [[loop.features(task, False, p["dense"])]], [1.0])
    else: table.append(extrapolated(table[0], size, n, p["dense"]))
    scores["batched, hashed"] = influence_scores([ours(f[True, "hashed"], train)], [[ours(f[False, "hashed"], task)]], [1.0])
    if size < 1e6: scores["exact (no projection)"] = influence_scores([ours(f[True, "none"], train)], [[ours(f[False, "none"], task)]], [1.0])
    table = pd.DataFrame(table)
    print(table.assign(times_batched=table.loc[1, "per_second"] / table.per_second).round(2).to_string(index=False))
    print("Spearman of the scores\n" + pd.DataFrame({a: {b: spearmanr(x, y).statistic for b, y in scores.items()} for a, x in scores.items()}).round(5).to_string())
    for kind in p: print(f"{kind} projection of 16 rows of {min(size, 2_000_000):,} to {dim:,}: peak {memory(min(size, 2_000_000), p[kind]):.0f} MiB above its input; the whole matrix in float32 would be {min(size, 2_000_000) * dim / 2**18:,.0f} MiB")

def extrapolated(gradients, size, n, p, part=1 << 14):
    "The loop with a dense projection too long to wait for: its gradients, and the projection of 16 rows measured on `part` coordinates."
    x, out = torch.randn(16, part), torch.zeros(16, p.dim)
    _, t = timed(lambda: add_projected(out, x, 0, p))
    seconds = gradients["cpu_seconds"] + t / part * size * n / 16
    return dict(what=f"loop, dense projection (LESS); extrapolated from {part:,} coordinates", rows=n, cpu_seconds=seconds, per_second=n / seconds)

def memory(size, p):
    "MiB that projecting 16 rows takes at its largest, in a process of its own; for a dense projection of long vectors on the first 20,000 coordinates, whose blocks are as large."
    code = f"import torch, bench_influence as b; torch.set_num_threads(1); print(b.grown({size if p.kind == 'hashed' else min(size, 20_000)}, {p.dim}, {p.kind!r}))"
    return float(subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout)

def grown(size, dim, kind):
    x, out = torch.randn(16, size), torch.zeros(16, dim)
    add_projected(out[:1], x[:1, :64], 0, Projection(kind, dim))          # libraries are loaded
    return peak_mib(lambda: add_projected(out, x, 0, Projection(kind, dim)))[1]

def loop_moments(loop):
    sizes = [p.numel() for p in loop.weights]
    return {f"{k}.{n}": part for k, x in (("m", loop.m), ("v", loop.v)) for n, part in zip(loop.names, x.split(sizes))}

if __name__ == "__main__":
    logging.disable_progress_bar(); torch.set_num_threads(1)
    name, *more = sys.argv[1:] or ["world:m"]
    measure(name, *map(int, more))
