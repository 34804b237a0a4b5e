"""Benchmark: the same samples from one process and from a Ray cluster of two nodes on this machine (a script; pytest does not collect it).

    OMP_NUM_THREADS=1 python tests/bench_cluster.py [--prompts 512] [--model s] [--rows 64] [--json FILE]

Says whether the rows are the same, what starting the replicas costs once (they import PyTorch and load the model), what a call costs after that, and what remains of it with next to no work (one token to each prompt): the price of the pipeline.
"""
import argparse, json, os, time
os.environ.update(RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0")
import ray
from ray.cluster_utils import Cluster
from mathrepro.engines.base import load_engine
from mathrepro.pretraining import shipped
from mathrepro.spread import use_cluster
from mathrepro.world.problems import problems

def timed(f):
    start = time.perf_counter(); value = f()
    return value, round(time.perf_counter() - start, 3)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=512); p.add_argument("--model", default="s"); p.add_argument("--rows", type=int, default=64); p.add_argument("--json")
    a = p.parse_args()
    prompts = [f"Question: {r['problem']}\nAnswer:\n" for r in problems(a.prompts, split="valid")]
    spec, how, few = dict(engine="transformers", model=str(shipped(a.model)), dtype="float32"), dict(n=4, temperature=0.7, max_new_tokens=64, seed=3), dict(n=1, max_new_tokens=1)
    here = load_engine(spec); here.generate(prompts[:8], **how)
    one, alone = timed(lambda: here.generate(prompts, **how)); _, little_alone = timed(lambda: here.generate(prompts, **few))
    node = dict(num_cpus=1, object_store_memory=100 * 2**20)
    c, start = timed(lambda: Cluster(initialize_head=True, head_node_args=dict(node, num_cpus=0, include_dashboard=False)))
    for _ in range(2): c.add_node(**node)
    c.wait_for_nodes(); use_cluster(dict(address=c.address, rows=a.rows))
    there = load_engine(spec)
    _, first = timed(lambda: there.generate(prompts[:8], **how))
    two, spread = timed(lambda: there.generate(prompts, **how)); _, little = timed(lambda: there.generate(prompts, **few))
    out = dict(prompts=len(prompts), samples=len(one), model=a.model, same_rows=one == two, one_process_s=alone, two_nodes_s=spread, speedup=round(alone / spread, 2), start_of_replicas_s=first,
               one_token_one_process_s=little_alone, one_token_two_nodes_s=little, nodes=len({n for _, _, n in there.rows.nodes()}), load_average=os.getloadavg()[0])
    print(json.dumps(out, indent=1))
    if a.json: open(a.json, "w").write(json.dumps(out, indent=1) + "\n")
    there.close(); use_cluster(); ray.shutdown(); c.shutdown()

if __name__ == "__main__": main()
