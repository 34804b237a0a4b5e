"Tool use with a real tiny model, real programs behind real isolation, real kills. Function-level tests are in nbs/44_tools.ipynb and nbs/24b_world_programs.ipynb."
import os, signal, subprocess, sys, time
from pathlib import Path

import psutil, pytest

sys.path.insert(0, str(Path(__file__).parent))
import stages_of_tools as st
from mathrepro import arms, tools
from mathrepro.keys import file_hash
from mathrepro.workers import close_workers

HERE = str(Path(__file__).parent)
TORA = Path(os.environ.get("MATHREPRO_DATA", "/nowhere")) / "tora"

@pytest.fixture(scope="module")
def student(tmp_path_factory):
    "Folders of two fine-tuned models: {tools: folder, words: folder}."
    run, stages = st.student(tmp_path_factory.mktemp("student"))
    run.compute()
    yield {name: s.path / "model" for name, s in stages.items()}
    close_workers()

def calls(stage): return stage.table("calls.parquet")

def test_a_taught_model_solves_with_tools(student, tmp_path):
    "Programs it writes are run; with their outputs it is right far more often than with outputs that it makes up, or in words."
    run, solved = st.solving(tmp_path, student["tools"], n=1, problems=200, temperature=0.0, shard=1024)
    m = run.stage("words", arms.base_model, model=str(student["words"]))
    p, same = run.stage("problems", arms.load_problems, dataset="world", split="test", n=200, seed=0, options=st.STEPS), dict(engine=st.ENGINE, max_new_tokens=160)
    words = run.stage("solve/words", arms.solve, model=m, problems=p, template="plain", **same)
    alone = run.stage("solve/alone", arms.solve, model=run.stage("model", arms.base_model, model=str(student["tools"])), problems=p, template=tools.TOOL_TEMPLATES["plain"], **same)
    run.compute()
    right = {name: s.json("metrics.json")["right"] / 200 for name, s in dict(tools=solved, alone=alone, words=words).items()}
    got, table = solved.json("metrics.json"), calls(solved)
    quoted = lambda stage: sum(v == "same" for v in tools.execution([s.text for s in arms.read_samples(stage.path)])) / 200
    true = dict(tools=quoted(solved), alone=quoted(alone))
    print(f"\nright: {right}; {got}; quoted outputs true: {true}")
    assert got["with calls"] >= 190 and got["calls"] == len(table) - got["call limit"] and list(table.columns) == list(tools.Call.__slots__)
    assert right["tools"] > right["alone"] + 0.3 and right["tools"] > right["words"]
    assert true["tools"] > 0.97 and true["alone"] < 0.5
    assert (table[table.error == ""].backend != "").all() and (table.backend != "none").all()

def test_shards_and_batches_change_nothing(student, tmp_path):
    "Samples belong to their problem and number, whatever else is in the batch."
    one, whole = st.solving(tmp_path, student["tools"], problems=16, workers=0, shard=1024)
    two, parts = st.solving(tmp_path, student["tools"], problems=16, workers=0, shard=9, engine={**st.ENGINE, "batch_size": 5})
    one.compute(whole); two.compute(parts)
    a, b = (arms.read_samples(s.path) for s in (whole, parts))
    assert [(s.problem_id, s.index, s.text) for s in a] == [(s.problem_id, s.index, s.text) for s in b] and calls(whole).equals(calls(parts))
    texts = {}
    for s in a: texts.setdefault(s.problem_id, set()).add(s.text)
    assert sum(len(t) > 1 for t in texts.values()) >= 8, "samples of one problem differ"

def data(home):
    "Relative name -> sha256 of everything in the store but the costs."
    store = Path(home) / "store"
    return {str(p.relative_to(store)): file_hash(p) for p in sorted(store.rglob("*")) if p.is_file() and p.name != "cost.json"}

def spawn(home, model):
    code = f"import sys; sys.path.insert(0, {HERE!r}); import stages_of_tools as st; run, last = st.solving({str(home)!r}, {str(model)!r}); run.compute(last)"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def test_killed_in_the_middle_same_bytes(student, tmp_path):
    calm, home, kills = tmp_path / "calm", tmp_path / "killed", 0
    run, last = st.solving(calm, student["tools"])
    run.compute(last); close_workers()
    shards = lambda: len(list(home.glob("work/*/out/samples-*")))
    for wanted in (1, 3):
        p, began = spawn(home, student["tools"]), time.monotonic()
        while p.poll() is None and shards() < wanted and time.monotonic() < began + 120: time.sleep(0.005)
        family = psutil.Process(p.pid).children(recursive=True) if p.poll() is None else []
        p.send_signal(signal.SIGKILL); kills += p.wait() == -9
        p.stderr.close()
        assert not psutil.wait_procs(family, timeout=10)[1], "workers, and what runs programs, must die with their parent"
    assert kills == 2 and 0 < shards() < 5
    p = spawn(home, student["tools"]); _, err = p.communicate(timeout=240)
    assert p.returncode == 0, err
    assert data(home) == data(calm) and sorted(f.name for f in last.path.glob("*.parquet")) == ["calls.parquet", *(f"samples-{i:05d}.parquet" for i in range(5)), "scores.parquet"]
    again, last = st.solving(home, student["tools"])
    assert max(r["sessions"] for r in again.ledger()) == 3

@pytest.mark.skipif(not (TORA / "tora-70b-gsm8k.jsonl").is_file(), reason="needs ToRA's outputs: set MATHREPRO_DATA")
def test_every_recorded_output_of_tora_is_reproduced():
    from mathrepro.graders import lenient_same, tora_outputs
    problems, samples, recorded = tora_outputs(TORA / "tora-70b-gsm8k.jsonl")
    replays = tools.replay([s.text for s in samples])
    print("\n" + tools.replay_table({"ToRA-70B": replays}).to_string(index=False))
    verdicts = [r.verdict for r in replays]
    assert verdicts.count("same") == 1318 and verdicts.count("no program") == 1
    assert {tools.kind_of_error(r.recorded) for r in replays} == {None, "SyntaxError", "timeout"}
    assert round(sum(lenient_same(a, p.answer) for a, p in zip(recorded, problems)) / len(problems), 4) == 0.8431

@pytest.mark.skipif(not (TORA / "tora-code-34b-gsm8k.jsonl").is_file(), reason="needs tora-code-34b-gsm8k.jsonl in $MATHREPRO_DATA/tora")
def test_published_accuracy_of_the_second_tora_model():
    from mathrepro.graders import lenient_same, tora_outputs
    problems, _, recorded = tora_outputs(TORA / "tora-code-34b-gsm8k.jsonl")
    assert round(sum(lenient_same(a, p.answer) for a, p in zip(recorded, problems)) / len(problems), 4) == 0.8067
