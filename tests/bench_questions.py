"""Benchmark: nearest seeds of MathScale-sized compositions (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_questions.py [--compositions 2000000] [--seeds 20857] [--plain 50]

The seed records are made: each has a topic of a Zipf-like law and one to five of that topic's knowledge points, so that hub points occur as
in real extractions. A composition takes knowledge points of two seeds. Times are CPU seconds of one thread; the plain program compares
Python sets one by one on a few compositions, and must find the same seeds.
"""
import argparse, resource, time
import numpy as np
from mathrepro.questions import nearest_seeds, padded

def seed_sets(n, topics, points, rng):
    "(n, 5) array of point ids, -1 as blank."
    weight = 1/np.arange(1, topics+1)
    owner = rng.choice(topics, points, p=weight**.7/(weight**.7).sum())
    own = [np.flatnonzero(owner == t) for t in range(topics)]
    popular, out = np.arange(1, points+1)**-.9, np.full((n, 5), -1, np.int32)
    for row, t in zip(out, rng.choice(topics, n, p=weight/weight.sum())):
        some = own[t] if len(own[t]) else rng.integers(0, points, 1)
        m = min(rng.integers(1, 6), len(some))
        row[:m] = rng.choice(some, m, replace=False, p=popular[some]/popular[some].sum())
    return out

def composition_sets(n, seeds, rng):
    "(n, 5) array: one to five of the points of two random seeds."
    both = padded(np.hstack([seeds[rng.integers(0, len(seeds), n)], seeds[rng.integers(0, len(seeds), n)]]))
    order = np.where(both >= 0, rng.random(both.shape), 2).argsort(axis=1)[:, :5]
    out = np.take_along_axis(both, order, 1)
    out[np.arange(5) >= rng.integers(1, 6, n)[:, None]] = -1
    return padded(out)

def plain(composition, sets):
    "Number of the first of the nearest sets, and the similarity."
    best, at = 0.0, -1
    for i, s in enumerate(sets):
        j = len(composition & s)/len(composition | s)
        if j > best: best, at = j, i
    return at, best

def main():
    p = argparse.ArgumentParser()
    for name, value in (("compositions", 2_000_000), ("seeds", 20_857), ("topics", 2018), ("points", 8892), ("plain", 50)): p.add_argument(f"--{name}", type=int, default=value)
    a, rng = p.parse_args(), np.random.default_rng(0)
    seeds = seed_sets(a.seeds, a.topics, a.points, rng)
    compositions = composition_sets(a.compositions, seeds, rng)
    print(f"{a.compositions:,} compositions ({len(np.unique(compositions, axis=0)):,} different), {a.seeds:,} seeds, most frequent point in {np.bincount(seeds[seeds >= 0]).max():,} seeds")
    for ties, k in (("first", 1), ("spread", 1), ("first", 5)):
        cpu, wall = time.process_time(), time.perf_counter()
        near = nearest_seeds(compositions, seeds, k, ties)
        cpu, wall = time.process_time()-cpu, time.perf_counter()-wall
        print(f"nearest_seeds k={k} ties={ties}: {cpu:.1f} s CPU, {wall:.1f} s wall, {a.compositions/cpu:,.0f}/s; mean best similarity {near.jaccard[:, 0].mean():.3f}, echoes {near.echo.mean():.1%}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GiB")
        if ties == "first" and k == 1: first = near
    sets = [set(s[s >= 0].tolist()) for s in seeds]
    some = rng.choice(a.compositions, min(a.plain, a.compositions), replace=False)
    cpu = time.process_time()
    found = [plain(set(compositions[i][compositions[i] >= 0].tolist()), sets) for i in some]
    cpu = time.process_time()-cpu
    assert [f[0] for f in found] == first.index[some, 0].tolist() and [f[1] for f in found] == first.jaccard[some, 0].tolist()
    print(f"Python sets: {len(some)/cpu:,.0f}/s, the same seeds for {len(some)} compositions; all would take {a.compositions/len(some)*cpu/3600:.1f} h")

if __name__ == "__main__": main()
