"""Benchmark: concept compositions on a graph of the MathScale paper's size, beside networkx, igraph and plain Python (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_concepts.py [--unique 2000000] [--slow-walks 2000]

Every program walks the same legs on the same graph with the same weights: 1-2 topic steps, one step to a knowledge point, 0-4 knowledge point
steps, a topic enumerated per walk, and the set of labels kept. networkx is the loop over neighbours that implementations of the paper use; igraph's own
weighted random walk is called once per leg and graph; plain Python has its cumulative weights made before. CPU seconds of this process are what
counts on a busy machine; wall seconds stand beside them.
"""
import argparse, random, resource, sys, time
from bisect import bisect
from itertools import accumulate
import numpy as np
from mathrepro.concepts import KINDS, ConceptGraph, WalkRules, legs_of, strings, synthetic_records, walk_block
from mathrepro.walks import walk, walker_seeds

def timed(f):
    cpu, wall = time.process_time(), time.perf_counter()
    out = f()
    return out, time.process_time() - cpu, time.perf_counter() - wall

def row(name, n, cpu, wall, unit="walks"): print(f"{name:<58} {n:>10,} {unit:<12} {cpu:>8.2f} {wall:>8.2f} {n / cpu:>14,.0f}")

def networkx_walks(graph, n):
    g, rng = graph.to_networkx(), random.Random(0)
    def step(node, kind):
        near = [(v, d["weight"] + 1e-5) for v, d in g[node].items() if v[0] == kind]
        return rng.choices([v for v, _ in near], [w for _, w in near])[0] if near else None
    def one(start):
        seen, at = [("topic", start)], ("topic", start)
        for kind, steps in (("topic", rng.randint(1, 2)), ("kp", 1), ("kp", rng.randint(0, 4))):
            for _ in range(steps):
                to = step(at, kind)
                if to is None: break
                seen.append(to); at = to
        return frozenset(seen)
    return lambda: [one(graph.topics[i % len(graph.topics)]) for i in range(n)]

def igraph_walks(graph, n):
    "Three graphs; topics and points share one numbering. `random_walk` stops at a dead end by itself."
    import igraph
    N, graphs = len(graph.topics), []
    for kind in KINDS:
        e = graph.edges[kind]
        u, v = np.repeat(np.arange(e.rows), e.degree), e.target.astype(int)
        if kind == "topic-kp": v = v + N
        on = u < v if kind != "topic-kp" else np.ones(len(u), bool)
        g = igraph.Graph(n=N + len(graph.knowledge_points) if kind == "topic-kp" else e.rows, edges=np.stack([u[on], v[on]], 1).tolist())
        g.es["w"] = (e.weight[on] + 1e-5).tolist()
        graphs.append(g)
    rng = random.Random(0)
    def one(start):
        topics = graphs[0].random_walk(start, rng.randint(1, 2), weights="w", stuck="return")
        point = graphs[1].random_walk(topics[-1], 1, weights="w", stuck="return")[-1] - N
        return frozenset(topics), frozenset(graphs[2].random_walk(point, rng.randint(0, 4), weights="w", stuck="return"))
    return lambda: [one(i % N) for i in range(n)]

def plain_walks(graph, n):
    "Python lists, cumulative weights made before, bisection."
    rng, legs = random.Random(0), []
    for kind in KINDS:
        e = graph.edges[kind]
        legs.append([(t.tolist(), list(accumulate((w + 1e-5).tolist()))) for t, w in (e.row(i) for i in range(e.rows))])
    def one(at):
        topics, points = [at], []
        for leg, steps, seen in ((legs[0], 1 + int(2 * rng.random()), topics), (legs[1], 1, points), (legs[2], int(5 * rng.random()), points)):
            for _ in range(steps):
                to, sums = leg[at]
                if not to: break
                at = to[bisect(sums, rng.random() * sums[-1])]
                seen.append(at)
        return frozenset(topics), frozenset(points)
    return lambda: [one(i % len(legs[0])) for i in range(n)]

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--unique", type=int, default=2_000_000)
    p.add_argument("--slow-walks", type=int, default=2_000, help="walks of networkx and igraph")
    a = p.parse_args()
    records = synthetic_records()
    print(f"{'':<58} {'number':>10} {'of':<12} {'CPU s':>8} {'wall s':>8} {'per CPU s':>14}")
    graph, *t = timed(lambda: ConceptGraph.build(records))
    row("build the graph", len(records), *t, "records")
    print(f"  {graph}")
    _, *t = timed(lambda: legs_of(graph, WalkRules()))
    row("alias tables", sum(len(e.target) for e in graph.edges.values()), *t, "slots")
    slow = a.slow_walks
    for name, make, n in (("networkx loop", networkx_walks, slow), ("igraph random_walk, three calls per composition", igraph_walks, slow), ("plain Python, cumulative lists and bisect", plain_walks, 100 * slow)):
        run = make(graph, n)
        row(name, n, *timed(run)[1:])
    walks = np.arange(64) * (32_768 // len(graph.topics)) * len(graph.topics)
    width, legs = int(walks[1]), legs_of(graph, WalkRules())
    def ours():
        for first in walks.tolist(): walk((first + np.arange(width)) % len(graph.topics), walker_seeds(0, first + np.arange(width)), legs)
    row("mathrepro.walks.walk", 64 * width, *timed(ours)[1:])
    for revisit in ("allow", "no-backtrack", "never"):
        rules = WalkRules(revisit=revisit)
        row(f"  with topics shuffled per epoch, revisit={revisit!r}", 64 * width, *timed(lambda: [walk_block(graph, rules, 0, i) for i in range(64)] and None)[1:])
    found, *t = timed(lambda: graph.sample_arrays(a.unique))
    row("unique compositions as arrays, de-duplicated", len(found), *t, "compositions")
    print(f"  from {found.info['walks']:,} walks in {found.info['epochs']:,} epochs; peak memory so far {peak():.2f} GiB")
    listed, *t = timed(lambda: strings(found))
    row("  the same as a list of tuples of strings", len(listed), *t, "compositions")
    print(f"  peak memory {peak():.2f} GiB")
    del listed
    for name, f in (("uniform compositions (control)", lambda: graph.uniform_arrays(200_000)), ("shuffled graph (control)", graph.shuffled)): print(f"{name:<58} {'':>10} {'':<12} {timed(f)[1]:>8.2f}")

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

if __name__ == "__main__": main()
