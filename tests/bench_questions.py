"""Benchmark: nearest seeds of MathScale-sized compositions (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_questions.py [--compositions 2000000] [--seeds 20857] [--plain 50]

The seed records are made (`concepts.synthetic_records`), the compositions are walks on their graph. Times are CPU seconds of one thread; the
plain program compares Python sets one by one on a few compositions, and must find the same seeds.
"""
import argparse, resource, time
import numpy as np
from mathrepro.concepts import ConceptGraph, synthetic_records
from mathrepro.questions import nearest_seeds, padded, seeds_left

def plain(composition, sets):
    "Number of the first of the nearest sets, and the similarity."
    best, at = 0.0, -1
    for i, s in enumerate(sets):
        j = len(composition & s)/len(composition | s)
        if j > best: best, at = j, i
    return at, best

def main():
    p = argparse.ArgumentParser()
    for name, value in (("compositions", 2_000_000), ("seeds", 20_857), ("plain", 50)): p.add_argument(f"--{name}", type=int, default=value)
    a, rng = p.parse_args(), np.random.default_rng(0)
    graph = ConceptGraph.build(synthetic_records(a.seeds))
    seeds, compositions = seeds_left(graph)[1], graph.sample_arrays(a.compositions).knowledge_points
    print(f"{a.compositions:,} compositions ({len(np.unique(padded(compositions), axis=0)):,} different sets), {len(seeds):,} seeds, most frequent point in {np.bincount(seeds[seeds >= 0]).max():,} seeds")
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
