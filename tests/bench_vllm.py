"""vLLM: rows streamed through a bounded window beside requests that each wait for their slowest row; prefix caching; two workers beside one.

    python tests/bench_vllm.py [--size m] [--rows 512] [--rounds 3] [--parts stream prefix workers]

A shipped model of the world answers its problems with natural lengths. Ways are taken in turn; wall seconds, and processor seconds of the workers, which a busy machine disturbs less. On a CPU one worker decodes with one core,
so that two of them compete with everything else on a small machine."""
import argparse, os, statistics, time
os.environ.setdefault("OMP_NUM_THREADS", "1"); os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
from pathlib import Path
from mathrepro.engines.vllm import VLLMEngine
from mathrepro.pretraining import shipped
from mathrepro.world.problems import problems


def processor_seconds(groups):
    "Of all processes in these process groups."
    ticks = 0
    for p in Path("/proc").glob("[0-9]*/stat"):
        try: f = p.read_text().rpartition(")")[2].split()
        except OSError: continue
        if int(f[2]) in groups: ticks += int(f[11]) + int(f[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(f, engine):
    groups = {c.process.pid for c in engine.workers.children}
    began, used = time.perf_counter(), processor_seconds(groups)
    return f(), time.perf_counter() - began, processor_seconds(groups) - used


def texts(done): return [c.text for c in done]


def alternating(ways: dict, rounds: int, engine):
    "(wall, processor) seconds of each way, in turn; the rows of the last round."
    took, rows = {k: [] for k in ways}, {}
    for _ in range(rounds):
        for name, f in ways.items():
            rows[name], *s = timed(f, engine); took[name].append(s)
    return took, rows


def show(title, took, rows):
    first, *rest = took
    print(f"\n{title}")
    for name in took:
        (wall, used), (w0, u0) = ([statistics.median(x) for x in zip(*took[k])] for k in (name, first))
        same = sum(a == b for a, b in zip(texts(rows[first]), texts(rows[name]))) / len(rows[first])
        span = f"{min(t[0] for t in took[name]):.2f}-{max(t[0] for t in took[name]):.2f}"
        print(f"  {name:<26} wall {wall:6.2f} s ({span}), {w0 / wall:.2f} times as fast; processor {used:6.2f} s, {u0 / used:.2f} times; {sum(c.new_tokens for c in rows[name]) / wall:7,.0f} new tokens/s; equal rows {same:.1%}", flush=True)


def stream(a, folder, prompts):
    "The same rows in requests of `window` rows, one after another, and as one call with `window` rows in flight."
    for window, places in ((64, 64), (256, 64), (1024, 256)):
        if window * 2 > a.rows: continue
        e = VLLMEngine(folder, max_model_len=512, cpu_cache_gib=1, batch_size=window, max_num_seqs=places)
        how = dict(temperature=1.0, max_new_tokens=a.new)
        e.generate(prompts[:places], **how)
        took, rows = alternating({"requests, each waited for": lambda: sum((e.generate(prompts[lo:lo + window], **how) for lo in range(0, len(prompts), window)), []), "one stream": lambda: e.generate(prompts, **how)}, a.rounds, e)
        lengths = sorted(c.new_tokens for c in rows["one stream"])
        show(f"{len(prompts)} rows, {window} in flight, {places} worked on at a time; new tokens: median {lengths[len(lengths) // 2]}, 90 % {lengths[len(lengths) * 9 // 10]}, longest {lengths[-1]}", took, rows)
        e.close()


def prefix(a, folder, prompts):
    "Sixteen samples of each prompt behind two solved examples, short answers: reading is most of the work."
    shots = "".join(f"Question: {r['problem']}\nAnswer:\n{r['solution']}\n" for r in problems(2, split="train"))
    long, took, rows = [shots + p for p in prompts[:16]], {}, {}
    for on in (False, True):
        e = VLLMEngine(folder, max_model_len=512, cpu_cache_gib=1, enable_prefix_caching=on)
        ask = lambda seed=0: e.generate(long, n=16, temperature=1.0, max_new_tokens=8, seed=seed)
        ask(9)
        t, r = alternating({"on" if on else "off": ask}, a.rounds, e); took |= t; rows |= r
        e.close()
    show(f"prefix caching, 16 samples of 16 prompts of {rows['on'][0].prompt_tokens} tokens", took, rows)


def workers(a, folder, prompts):
    "One worker and two."
    took, rows = {}, {}
    for n in (1, 2):
        e = VLLMEngine(folder, max_model_len=512, cpu_cache_gib=1, data_parallel_size=n)
        ask = lambda: e.generate(prompts, temperature=1.0, max_new_tokens=a.new)
        ask()
        t, r = alternating({f"{n} worker{'s' * (n > 1)}": ask}, a.rounds, e); took |= t; rows |= r
        e.close()
    show(f"{len(prompts)} rows on {n} workers, {len(os.sched_getaffinity(0))} cores", took, rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", default="m", help="shipped model: s or m"); p.add_argument("--rows", type=int, default=512); p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--new", type=int, default=256, help="most new tokens of a row"); p.add_argument("--parts", nargs="+", default=["stream", "prefix", "workers"], choices=["stream", "prefix", "workers"])
    a = p.parse_args()
    prompts = [f"Question: {r['problem']}\nAnswer:\n" for r in problems(a.rows, split="valid")]
    for part in a.parts: globals()[part](a, shipped(a.size), prompts)


if __name__ == "__main__": main()
