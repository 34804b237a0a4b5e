"""The MathScale pipeline against a real served model, not a teacher of ours: what share of its replies can be read and used? (A script; pytest does not collect it.)

    MATHREPRO_DATA=… python tests/bench_served.py [--seeds 60] [--compositions 40] [--model smollm2-135m]

vLLM's API server (CPU build here) serves a small pretrained model on loopback; seeds are questions of GSM8K. Concepts are asked for twice, free and held to the JSON schema of the request; the graph, compositions, questions, judge and
cleaning then run on what could be read, and a step that nothing comes out of says so in its own words, as for any user. A 135M model is a poor teacher: the point is that the path holds."""
import argparse, json, os, re, tempfile, time
from pathlib import Path
from chaos import Server
from mathrepro import arms, extraction, questions
from mathrepro.pretrained import resolve_model
from mathrepro.runs import Run

class Served(Server):
    "vLLM's API server with a folder's model."
    def __init__(self, folder, model): super().__init__(folder); self.model = model
    def answered(self): return {}
    def start(self):
        from mathrepro.engines.vllm import environment, vllm_python
        env = {k: v for k, v in environment(dict(cpu_cache_gib=2, tensor_parallel_size=1), None).items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.spawn([vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model), "--served-model-name", "small", "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "bfloat16",
                    "--max-model-len", "2048", "--enforce-eager", "--no-enable-chunked-prefill"], env)

def step(run, name, fn, **params):
    "(stage or None, its counts or why it ended) of one step; what it took in seconds goes to the counts."
    start, s = time.perf_counter(), run.stage(name, fn, **params)
    try: run.compute(s)
    except Exception as e: return None, dict(ended=re.sub(r" in /\S+", "", str(e).split(" (see ")[0])[:300])     # no temporary folder in a record
    return s, dict(json.loads((s.path/"counts.json").read_text()) if (s.path/"counts.json").exists() else {}, seconds=round(time.perf_counter() - start, 1))

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seeds", type=int, default=60); p.add_argument("--compositions", type=int, default=40); p.add_argument("--model", default="smollm2-135m")
    a, out = p.parse_args(), {}
    with tempfile.TemporaryDirectory() as tmp:
        server = Served(Path(tmp)/"server", resolve_model(a.model)); server.start()
        try:
            server.wait(600)
            engine = dict(engine="endpoint", base_url=server.url, model="small", concurrency=16, timeout=300.0)
            run = Run("served", workers=0, home=Path(tmp)/"home", progress="quiet")
            data = lambda name, n, split: run.stage(name, arms.load_problems, dataset="gsm8k", split=split, n=n, seed=0)
            seeds, test = data("seeds", a.seeds, "train"), data("test", 200, "test"); run.compute([seeds, test])
            _, out["concepts, free"] = step(run, "free", extraction.extract, problems=seeds, engine=engine, min_yield=0.0)
            found, out["concepts, held to the schema"] = step(run, "held", extraction.extract, problems=seeds, engine={**engine, "json_schema": "auto"}, min_yield=0.0)
            labels, out["labels"] = step(run, "labels", extraction.keep_labels, concepts=found, normalise="light", min_count=1) if found else (None, {})
            made, out["compositions"] = step(run, "compositions", questions.compose, concepts=labels, n=a.compositions, min_count=1) if labels else (None, {})
            asked, out["questions"] = step(run, "questions", questions.synthesise, compositions=made, problems=seeds, engine=engine, max_new_tokens=384) if made else (None, {})
            checked, out["judge"] = step(run, "judged", questions.validate, questions=asked, engine=engine, max_new_tokens=256) if asked else (None, {})
            _, out["cleaning"] = step(run, "clean", questions.clean, questions=checked or asked, references=[test], seeds=seeds) if asked else (None, {})
        finally: server.kill()
    for k, v in out.items(): print(f"{k}: {json.dumps(v, ensure_ascii=False)}")

if __name__ == "__main__": main()
