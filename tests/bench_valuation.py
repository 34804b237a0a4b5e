"""Benchmark: BM25 of generated texts for a target's example problems, beside rank_bm25 and bm25s (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_valuation.py [--texts 100000] [--queries 32]

Times are of one run, index and scores together, words split by `ngrams.words` for all three (for the packages this is in their time, for ours it is in `word_hashes`); rates are texts per second for all queries.
rank_bm25 and bm25s score one query after the other. The last column is the largest difference of a score from ours under the same formula, which must be rounding only.
"""
import argparse, resource, time
import numpy as np
from mathrepro.ngrams import words
from mathrepro.valuation import bm25, bm25_tasks
from mathrepro.world.corpus import documents
from mathrepro.world.problems import problems

def ours(queries, texts): return bm25(queries, texts)
def ours_mean(queries, texts): return bm25_tasks([queries], texts)
def ours_okapi(queries, texts): return bm25(queries, texts, idf="okapi")

def rank_bm25(queries, texts):
    from rank_bm25 import BM25Okapi
    index = BM25Okapi([words(t) for t in texts])
    return np.array([index.get_scores(words(q)) for q in queries])

def bm25s(queries, texts, k1=1.5, b=0.75):
    from bm25s import BM25
    index = BM25(method="lucene", k1=k1, b=b, dtype="float64")
    index.index([words(t) for t in texts], show_progress=False)
    return np.array([index.get_scores(words(q)) for q in queries]) * (k1 + 1)      # this package leaves the constant factor out

def main():
    a = argparse.ArgumentParser()
    a.add_argument("--texts", type=int, default=100_000)
    a.add_argument("--queries", type=int, default=32)
    a = a.parse_args()
    texts, queries = documents(a.texts, seed=5), [p["problem"] for p in problems(a.queries, seed=3)]
    print(f"{a.texts:,} texts of {np.mean([len(t.split()) for t in texts[:1000]]):.0f} words, {a.queries} queries of {np.mean([len(words(q)) for q in queries]):.0f} words")
    found = {}
    for name, f, like in (("ours, lucene", ours, None), ("ours, their mean", ours_mean, None), ("ours, okapi", ours_okapi, None), ("bm25s, lucene", bm25s, "ours, lucene"), ("rank_bm25, okapi", rank_bm25, "ours, okapi")):
        start = time.perf_counter(), time.process_time()
        found[name] = f(queries, texts)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        off = f"{np.abs(found[name] - found[like]).max():.1e} of {found[name].max():.0f}" if like else ""
        print(f"  {name:18} {wall:7.2f} s wall {cpu:7.2f} s CPU {a.texts / cpu:>10,.0f} texts/s CPU   {off}   peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)

if __name__ == "__main__": main()
