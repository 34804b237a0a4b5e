"""New tokens per second: this package's engine beside transformers' `generate`, same model, same prompts, one thread, alternating.

    OMP_NUM_THREADS=1 python tests/bench_sampling.py [--size m] [--rounds 3] [--vllm]

Times are processor seconds of one thread, so that a busy machine disturbs little (vLLM: wall seconds, its worker is another process).
Natural lengths: rows end at EOS. Fixed: EOS is ignored and every row writes 64 tokens. A batch is either distinct prompts or 16 samples of each."""
import argparse, os, statistics, tempfile, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from mathrepro.engines.hf import TransformersEngine
from mathrepro.tiny import make_tokenizer, tiny_config
from mathrepro.training import SFTConfig, train_sft
from mathrepro.world.problems import problems


def model_folder(size, kv=None):
    "A tiny model taught the format for a minute, so that lengths are natural."
    from transformers import LlamaForCausalLM
    rows = [dict(prompt=p["problem"] + "\n", response=p["solution"]) for p in problems(2000, seed=5)]
    tok = make_tokenizer([r["prompt"] + r["response"] for r in rows], 768)
    base, out = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    c = tiny_config(size, tok)
    if kv: c.num_key_value_heads = kv
    torch.manual_seed(0)
    LlamaForCausalLM(c).save_pretrained(base); tok.save_pretrained(base)
    r = train_sft(base, rows, out, SFTConfig(epochs=3, batch_size=64, learning_rate=3e-3))
    print(f"model {size}, kv heads {c.num_key_value_heads}: {sum(p.numel() for p in TransformersEngine(out).model.parameters()) / 1e6:.2f}M parameters, loss {r.loss:.2f}, {r.tokens / r.seconds:,.0f} training tokens/s")
    return out, [r["prompt"] for r in rows]


def hf(engine, prompts, n, fixed, new=64):
    tok, m = engine.tokenizer, engine.model
    x = tok(prompts, return_tensors="pt", padding=True)
    stop = dict(eos_token_id=None) if fixed else {}
    y = m.generate(**x, do_sample=True, temperature=0.7, top_k=0, num_return_sequences=n, max_new_tokens=new, pad_token_id=tok.pad_token_id, **stop)
    y = y[:, x["input_ids"].shape[1]:]
    tok.batch_decode(y, skip_special_tokens=True)
    return y.numel() if fixed else int((y != tok.pad_token_id).sum())


def ours(engine, prompts, n, fixed, new=64):
    if fixed: eos, engine.eos = engine.eos, set(); engine.endings.clear()
    out = engine.generate(prompts, n=n, temperature=0.7, max_new_tokens=new)
    if fixed: engine.eos = eos; engine.endings.clear()
    return sum(c.new_tokens for c in out)


def main():
    a = argparse.ArgumentParser(); a.add_argument("--size", default="m"); a.add_argument("--rounds", type=int, default=3); a.add_argument("--kv", type=int); a.add_argument("--vllm", action="store_true")
    a.add_argument("--batches", type=int, nargs="+", default=[256, 512])
    a = a.parse_args()
    folder, prompts = model_folder(a.size, a.kv)
    engine = TransformersEngine(folder, batch_size=max(a.batches))
    other = None
    if a.vllm:
        from mathrepro.engines.vllm import VLLMEngine
        other = VLLMEngine(folder, max_model_len=512)
    print(f"{'batch':>6} {'prompts':>12} {'lengths':>8} | {'ours':>8} {'generate':>9} tok/s | ratio median (min-max)" + (" | vLLM tok/s (wall)" if other else ""))
    for B in a.batches:
        for n in (1, 16):
            for fixed in (False, True):
                speeds = {"ours": [], "hf": []}
                for _ in range(a.rounds):
                    for name, f in (("ours", ours), ("hf", hf)):
                        t = time.process_time(); k = f(engine, prompts[:B // n], n, fixed); speeds[name].append(k / (time.process_time() - t))
                ratio = [x / y for x, y in zip(speeds["ours"], speeds["hf"])]
                line = f"{B:>6} {f'{B // n} x {n}':>12} {'fixed' if fixed else 'natural':>8} | {statistics.median(speeds['ours']):>8,.0f} {statistics.median(speeds['hf']):>9,.0f}       | {statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
                if other and not fixed:
                    t = time.perf_counter(); k = ours(other, prompts[:B // n], n, False); line += f" | {k / (time.perf_counter() - t):,.0f}"
                print(line, flush=True)
    if other: other.close()


if __name__ == "__main__": main()
