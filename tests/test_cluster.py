"""Work spread over a real Ray cluster: a head and two nodes on this machine, tiny models, nodes and processes that die. Skipped, visibly, where Ray is not installed (README: extra cluster),
and beside other tests: Ray's daemons end themselves when a busy machine starves them, so `make test-cluster` runs these alone."""
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path
import pytest

if not os.environ.get("MATHREPRO_RAY"): pytest.skip("a Ray cluster wants the machine to itself: make test-cluster", allow_module_level=True)
ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'mathrepro[cluster]'")
os.environ.update(RAY_worker_niceness="0", RAY_DEDUP_LOGS="0", RAY_USAGE_STATS_ENABLED="0", RAY_health_check_timeout_ms="60000")    # a loaded machine starves processes that are nice
from ray.cluster_utils import Cluster
from mathrepro import arms
from mathrepro.config import UserError
from mathrepro.engines.base import load_engine
from mathrepro.programs import run_programs
from mathrepro.pretraining import shipped
from mathrepro.runs import Run
from mathrepro.spread import cluster as set_cluster, use_cluster
from mathrepro.world.problems import problems

NODE = dict(num_cpus=1, object_store_memory=80 * 2**20)
PROMPTS = [f"Question: {r['problem']}\nAnswer:\n" for r in problems(96, split="valid")]
HOW = dict(n=2, temperature=0.7, max_new_tokens=48, seed=3)


@pytest.fixture(scope="module")
def nodes():
    c = Cluster(initialize_head=True, head_node_args=dict(NODE, num_cpus=0, include_dashboard=False))
    c.pair = [c.add_node(**NODE), c.add_node(**NODE)]
    c.wait_for_nodes()
    yield c
    use_cluster(); ray.shutdown(); c.shutdown()


@pytest.fixture
def spec(): return dict(engine="transformers", model=str(shipped("s")), dtype="float32")


@pytest.fixture
def on(nodes):
    "The cluster in use, with both its nodes alive."
    while len([n for n in nodes.pair if n in nodes.worker_nodes]) < 2: nodes.pair = [*[n for n in nodes.pair if n in nodes.worker_nodes], nodes.add_node(**NODE)]
    nodes.wait_for_nodes()
    yield use_cluster(dict(address=nodes.address, rows=8))
    use_cluster()


@pytest.fixture(scope="module")
def here():
    e = load_engine(dict(engine="transformers", model=str(shipped("s")), dtype="float32"))
    return e.generate(PROMPTS, **HOW), e.usage


def test_two_nodes_give_the_rows_of_one_process(on, spec, here):
    e = load_engine(spec)
    there = e.generate(PROMPTS, **HOW)
    assert there == here[0] and (e.usage.prompt_tokens, e.usage.new_tokens) == (here[1].prompt_tokens, here[1].new_tokens) and e.usage.flops == pytest.approx(here[1].flops)
    places = e.rows.nodes()
    assert len({node for _, _, node in places}) == 2 and os.getpid() not in [pid for _, pid, _ in places]
    e.close()


def test_a_node_lost_in_the_middle_costs_nothing_but_time(nodes, on, spec, here):
    e, seen = load_engine(spec), []
    def lose():
        while len(seen) < 16: time.sleep(0.01)
        nodes.remove_node(nodes.pair[0], allow_graceful=False)
    thread = threading.Thread(target=lose); thread.start()
    there = e.generate(PROMPTS, progress=lambda done, total: seen.append(done), **HOW)
    thread.join()
    assert there == here[0] and seen[-1] == len(PROMPTS) and len({node for _, _, node in alive(e)}) == 1
    e.close()
    recorded("a node is lost", "one of two Ray nodes", "192 samples drawn over a cluster of two nodes")


def recorded(fault, target, setting, noticed="the call itself went on; its samples are those of an engine without a cluster"):
    "With $MATHREPRO_FAULTS set: the fault that was just borne, into that record."
    from mathrepro.faults import fault_row, merge_faults
    if path := os.environ.get("MATHREPRO_FAULTS"): merge_faults(path, [fault_row(fault, target, 1, 1, noticed=noticed, setting=setting, command="MATHREPRO_FAULTS=reports/faults.json make test-cluster")])


def alive(e):
    from mathrepro.cluster import living
    e.rows.actors = living(ray, e.rows.actors)
    return e.rows.nodes()


def test_when_every_replica_is_killed_new_ones_finish(on, spec, here):
    e, seen = load_engine(spec), []
    e.generate(PROMPTS[:2], **HOW)
    def kill():
        while len(seen) < 16: time.sleep(0.01)
        for _, pid, _ in places: os.kill(pid, signal.SIGKILL)
    e.generate(PROMPTS[:16], **HOW)
    places = e.rows.nodes()
    thread = threading.Thread(target=kill); thread.start()
    there = e.generate(PROMPTS, progress=lambda done, total: seen.append(done), **HOW)
    thread.join()
    assert there == here[0] and not {p for _, p, _ in places} & {p for _, p, _ in e.rows.nodes()}
    e.close()
    recorded("SIGKILL in mid-call", "all Ray replicas at once", "192 samples drawn over a cluster of two nodes")


def test_programs_and_grades_come_from_the_nodes(on):
    codes = [f"print({i} * 2)" for i in range(12)] + ["1/0", "while True: pass"]
    there = run_programs(codes, timeout=2.0)
    use_cluster()
    same = lambda rs: [(r.output, r.error, r.reason) for r in rs]
    assert same(there) == same(run_programs(codes, timeout=2.0)) and there[-1].timed_out


def test_a_run_over_the_cluster_shares_its_stages_with_a_local_one(nodes, tmp_path):
    def study(home, **more):
        run = Run("x", workers=1, home=home, progress="quiet", **more)
        data, base = run.stage("data", arms.load_problems, dataset="world", split="test", n=24, seed=1), run.stage("base", arms.base_model, model="world:s")
        s = run.stage("solve", arms.solve, model=base, problems=data, engine=dict(engine="transformers", dtype="float32"), template="plain", n=2, temperature=0.7, max_new_tokens=48, shard=16)
        run.compute()
        return s
    a, b = study(tmp_path / "here"), study(tmp_path / "there", cluster=dict(address=nodes.address, rows=4))
    assert set_cluster()["stages"] == 1
    use_cluster()
    facts = lambda s: json.loads((s.path / "stage.json").read_text())["files"]
    assert a.key == b.key and facts(a) == facts(b) and len(list(a.path.glob("samples-*.parquet"))) > 1


def test_heads_score_on_the_nodes(on, tmp_path):
    from mathrepro import heads
    from mathrepro.heads import load_head, scorer_of
    model, tok = load_head(shipped("s"), seed=1)
    model.save_pretrained(tmp_path / "head"); tok.save_pretrained(tmp_path / "head")
    ids = [tok(p)["input_ids"] for p in PROMPTS]
    there = scorer_of(tmp_path / "head")
    assert isinstance(there, heads.NodeScorer) and there.parameters == sum(p.numel() for p in model.parameters())
    found = there.score(ids); there.close()
    use_cluster()
    assert abs(found - scorer_of(tmp_path / "head").score(ids)).max() < 1e-5 and found.std() > 0


def launch(address, folder, name, *options, launcher=None, **sft):
    settings = dict(dict(epochs=6, batch_size=16, learning_rate=1e-3, max_length=64, device="cpu", save_every=1), **sft)
    (folder / f"{name}.json").write_text(json.dumps(dict(model=str(shipped("xs")), rows=str(folder / "rows.jsonl"), out=str(folder / name), sft=settings)))
    start = launcher or [sys.executable, "-m", "mathrepro.ray_launch", "--address", address, "--workers", "2", *options]
    return subprocess.Popen([*start, "-m", "mathrepro.training", "--config", str(folder / f"{name}.json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})


def test_training_on_two_nodes_goes_on_when_one_is_lost(nodes, on, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(dict(prompt=p, response=f" {i}")) + "\n" for i, p in enumerate(PROMPTS)))
    spare = nodes.add_node(**NODE)
    p, note = launch(nodes.address, tmp_path, "lost", "--placement", "STRICT_SPREAD"), tmp_path / "lost/.checkpoint"
    while not note.exists() and p.poll() is None: time.sleep(0.05)
    step = json.loads(note.read_text())["step"]
    nodes.remove_node(nodes.pair[0], allow_graceful=False)
    said, errors = p.communicate(timeout=240)
    assert p.returncode == 0, errors[-3000:]
    q = launch(None, tmp_path, "whole", launcher=[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    told, errors = q.communicate(timeout=240)
    assert q.returncode == 0, errors[-3000:]
    lost, whole = (json.loads(t.strip().splitlines()[-1]) for t in (said, told))
    assert lost["steps"] == whole["steps"] > step and lost["loss"] == whole["loss"]
    assert (tmp_path / "lost/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    nodes.remove_node(spare)
    recorded("a node is lost", "one of two Ray nodes", "training in two processes, one on each node, through Ray Train")


def test_a_launch_that_is_refused_ends_at_once(nodes, on, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(dict(prompt="1", response="2")) + "\n")
    p = launch(nodes.address, tmp_path, "bad", schedule="step")
    said, errors = p.communicate(timeout=120)
    assert p.returncode == 2 and errors.strip().splitlines()[-1].endswith("sft.schedule 'step' is unknown; choose cosine, linear, constant or wsd") and not said


def test_requests_to_a_server_leave_from_the_stage_itself(tmp_path):
    from toys import served_engine
    with served_engine("world-critic", "critic") as server:
        use_cluster(dict(address="127.0.0.1:1"))      # where nothing listens, and nobody asks
        try:
            e = load_engine(dict(engine="endpoint", base_url=f"http://127.0.0.1:{server.server_port}/v1", model="critic", journal=str(tmp_path / "replies.jsonl"), max_wait=20.0))
            assert len(e.generate(PROMPTS[:3])) == 3 and e.usage.prompt_tokens > 0
            e.close()
        finally: use_cluster()
    assert server.asked == 3 and (tmp_path / "replies.jsonl").stat().st_size > 0


def test_bad_addresses_are_one_line(spec):
    use_cluster(dict(address="127.0.0.1:1"))
    try:
        p = subprocess.run([sys.executable, "-c", f"from mathrepro.config import UserError\nfrom mathrepro.engines.base import load_engine\ntry: load_engine({spec!r}).generate(['1'])\nexcept UserError as e: print('refused:', e)"], capture_output=True, text=True, timeout=60)
        assert "refused: no Ray cluster answers at '127.0.0.1:1'" in p.stdout and "ray start --head" in p.stdout, p.stdout + p.stderr[-2000:]
    finally: use_cluster()
    with pytest.raises(UserError, match="unknown parameter cluster.adress; did you mean"): use_cluster(dict(adress="auto"))


def test_an_error_on_a_node_is_the_same_one_line(on, spec):
    e = load_engine({**spec, "model": "/nowhere"})
    with pytest.raises(UserError, match="/nowhere.*on node"): e.generate(["1"])
    e.close()
