"Millions of rows, here some thousands: the verdicts of the in-memory way, kills, memory, bad files, full disks. Function-level tests are in nbs/53a."
import json, os, random, re, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
import pytest

from mathrepro import bulk, questions
from mathrepro.config import UserError
from mathrepro.keys import file_hash
from mathrepro.questions import CleanedQuestion, Question
from mathrepro.records import problems_table, read_rows, read_table, to_table, write_table
from mathrepro.runs import Run
from mathrepro.workers import Context, close_workers
from mathrepro.world.problems import problems

HERE = Path(__file__).parent

def texts_for_tests(n, seed=0):
    "World problems, word soups full of near copies, copies word for word, one-word edits, other languages, other alphabets, texts without words."
    rng, made = random.Random(seed), [p["problem"] for p in problems(n // 2, "train", seed)]
    soup = lambda: " ".join(rng.choices("Tom Ann buys sells 3 4 5 red green apples pears each day".split(), k=rng.randint(0, 9)))
    def edited(t): at = [m.span() for m in re.finditer(r"\w+", t)] or [(0, 0)]; a, b = rng.choice(at); return t[:a] + rng.choice(["seven", "12", "river"]) + t[b:]
    odd = ["?", " ?", "", "Wie viele Äpfel sind es noch?", "cafe\u0301 costs 3", "caf\u00e9 costs  3", "求 x 的值", "$x^2=4$", "What is 12 + 7?", "What is 12 - 7?", "What is 12 × 7?"]
    out = []
    for i in range(n):
        u = rng.random()
        old = rng.choice(out) if out else made[0]
        out.append(made[i % len(made)] if u < 0.4 else soup() if u < 0.65 else old if u < 0.75 else f"  {old}\n" if u < 0.8 else edited(old) if u < 0.98 else rng.choice(odd))
    return out

def write_input(folder, n=5000, seed=0):
    "A folder like that of `questions.synthesise` (two files, uneven row groups), one of test problems, one of seeds."
    rng, texts = random.Random(seed), texts_for_tests(n, seed)
    def question(i, t):
        u = rng.random()
        said = dict(ok=False, reason="no question", problem="", solution="") if u < 0.03 else dict(ok=True, reason="", problem=t, solution="I do not know." if u < 0.06 else f"So it is {i}.\n#### {i}")
        return Question(id=f"q{i}é", composition="", index=0, topics="[]", knowledge_points="[]", seeds="[]", jaccard=0.0, echo=False, prompt_hash="", prompt="", teacher="t", temperature=0.7, seed=0, finish="stop", tokens=5, reply="", **said)
    rows = [question(i, t) for i, t in enumerate(texts)]
    (folder / "asked").mkdir(parents=True)
    for k, part in enumerate((rows[:n // 3], rows[n // 3:])): pq.write_table(to_table(part, Question), folder / f"asked/questions-{k:05d}.parquet", row_group_size=(700, 1300)[k])
    (folder / "asked/other.parquet").write_bytes(b"not for us")
    chosen = rng.sample([t for t in texts if t], 60)
    write_table(folder / "test/problems.parquet", problems_table(chosen[:30] + chosen[:3] + ["A question of which no copy is anywhere to be found."], "0", id=[f"t{i}" for i in range(34)]))
    write_table(folder / "gold/problems.parquet", problems_table(chosen[30:] + ["Find x.", "Find  x."], "0", id=[f"s{i}" for i in range(32)]))
    return dict(files=folder / "asked", references=[folder / "test"], seeds=folder / "gold")

@pytest.fixture(scope="module")
def given(tmp_path_factory): return write_input(tmp_path_factory.mktemp("given"))

# --- the same verdicts as in memory

@pytest.mark.parametrize("options", [dict(), dict(near_test=0.7, english=True, threshold=0.6), dict(same_numbers=True, ngram=8), dict(threshold=None, seeds=None), dict(threshold=0.9, rows=500)], ids=["default", "all filters", "same numbers", "exact only", "first rows"])
def test_every_verdict_is_that_of_clean(given, tmp_path, monkeypatch, options):
    monkeypatch.setattr(bulk, "PART", 1500)
    given = {**given, **options}
    plain, ctx = Context(tmp_path / "plain"), Context(tmp_path / "bulk")
    questions.clean(plain, **{**{k: v for k, v in given.items() if k != "files"}, "questions": given["files"]})
    counts = bulk.clean_bulk(ctx, **given, pattern="questions-*.parquet", size=999)
    want = read_rows(plain.out / "questions.parquet", CleanedQuestion)
    kept, rejected = (read_table(ctx.out / k).to_pylist() for k in ("rows", "rejected"))
    assert [r["id"] for r in kept] == [q.id for q in want if q.kept]
    assert [tuple(r[k] for k in ("id", "row", "why", "other", "score", "shared")) for r in rejected] == [(q.id, i, q.why, q.other, q.score, q.shared) for i, q in enumerate(want) if not q.kept]
    told = json.loads((plain.out / "counts.json").read_text())
    assert counts["rows"] == told["questions"] and counts["kept"] == told["kept"] and counts["reasons"] == told["reasons"]
    if options.get("threshold", 1): assert sum(n for k, n in counts["reasons"].items() if k.startswith("near copy")) > 200
    assert {p.name for p in ctx.out.iterdir()} == {"rows", "rejected", "counts.json"}

def test_rows_stay_as_they_were(given, tmp_path):
    ctx = Context(tmp_path)
    bulk.clean_bulk(ctx, **given, pattern="questions-*.parquet", size=2000)
    before = pa.concat_tables(pq.read_table(f) for f in sorted(given["files"].glob("questions-*")))
    kept, rejected = read_table(ctx.out / "rows"), read_table(ctx.out / "rejected")
    assert rejected.select(before.column_names).cast(before.schema).equals(before.take(rejected["row"])) and kept.cast(before.schema).equals(before.filter(~np.isin(np.arange(5000), rejected["row"])))

def test_a_sample_is_that_of_subset(given, tmp_path):
    all_, some = Context(tmp_path / "all"), Context(tmp_path / "some")
    questions.clean(all_, given["files"], given["references"], threshold=0.9)
    sub = Context(tmp_path / "subset")
    questions.subset(sub, all_.out, 300, seed=5)
    bulk.clean_bulk(some, given["files"], given["references"], threshold=0.9, rows=300, sample="hash", seed=5, size=1024, pattern="questions-*.parquet")
    train = Context(tmp_path / "train")
    bulk.train_rows(train, some.out)
    assert (train.out / "rows.parquet").read_bytes() == (sub.out / "rows.parquet").read_bytes()
    assert read_table(some.out / "rejected", columns=["why"])["why"].to_pylist().count("not needed") > 300

# --- kills

def tree(folder): return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("cost.json", "stage.json")}

CLEAN = "import sys, json; from pathlib import Path; from mathrepro import bulk; bulk.PART = 2000; a = json.loads(sys.argv[1]); bulk.clean_files(**a, progress='quiet', pattern='questions-*.parquet', size=500)"

def child(arguments, out): return subprocess.Popen([sys.executable, "-c", CLEAN, json.dumps({**{k: [str(x) for x in v] if isinstance(v, list) else str(v) for k, v in arguments.items()}, "out": str(out)})], stderr=subprocess.PIPE, text=True)

def commits(work):
    "Files committed so far."
    try: return (work / "journal.jsonl").read_text(errors="replace").count('{"file"')
    except (FileNotFoundError, NotADirectoryError): return 0

def test_kill_9_at_every_step_and_the_same_bytes(given, tmp_path):
    bulk.clean_files(**given, out=tmp_path / "calm", progress="quiet", pattern="questions-*.parquet", size=500)
    want, work, seen = tree(tmp_path / "calm"), tmp_path / ".killed.work", []
    total = 1 + 10 + 1 + 24 * 3 + 11 + 20 + 1                       # seeds, scan, copies, pairs, near, rows and rejected, counts
    for at in (0, 1, 5, 11, 12, 40, 84, 87, 95, 97, 106, total):
        p = child(given, tmp_path / "killed")
        while p.poll() is None and commits(work) < at: time.sleep(0.002)
        p.kill(); p.wait(); p.stderr.close()
        seen.append(commits(work))
        if work.exists(): assert not [x for x in work.rglob("*") if x.suffix == ".parquet" and not x.name.startswith(".") and x.stat().st_size == 0]
    assert seen == sorted(seen) and len(set(seen)) >= 8 or (tmp_path / "killed").exists(), seen
    p = child(given, tmp_path / "killed")
    assert p.wait() == 0 or "exists; delete it" in p.stderr.read()
    p.stderr.close()
    assert tree(tmp_path / "killed") == want and not list(tmp_path.glob(".killed*")) and max(seen) <= total, "nothing was done twice"

def test_as_a_stage_killed_in_a_worker(given, tmp_path):
    code = f"from test_bulk import *; from mathrepro.runs import Run; r = Run('big', workers=1, home={str(tmp_path / 'home')!r}, progress='quiet'); r.compute(stage_of(r, {str(given['files'].parent)!r}))"
    env = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for at in (4, 50):
        p = subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True)
        while p.poll() is None and sum(map(commits, (tmp_path / "home/work").glob("*"))) < at: time.sleep(0.005)
        os.killpg(p.pid, signal.SIGKILL); p.wait()
    ours = Run("big", workers=1, home=tmp_path / "home", progress="quiet", wait=True)
    ours.compute(s := stage_of(ours, given["files"].parent))
    calm = Run("calm", workers=0, home=tmp_path / "calm", progress="quiet")
    calm.compute(c := stage_of(calm, given["files"].parent))
    close_workers()
    assert tree(s.path) == tree(c.path) and ours.ledger()[0]["sessions"] >= 2

def stage_of(run, folder):
    folder = Path(folder)
    return run.stage("clean", bulk.clean_bulk, files=str(folder / "asked"), references=[str(folder / "test")], seeds=str(folder / "gold"), pattern="questions-*.parquet", size=500)

def test_a_harmed_file_is_made_again_and_other_work_is_not_continued(given, tmp_path):
    p, work = child(given, tmp_path / "a"), tmp_path / ".a.work"
    while p.poll() is None and commits(work) < 20: time.sleep(0.002)
    p.kill(); p.wait(); p.stderr.close()
    assert commits(work) < 100
    data = bytearray((work / "out/scan-00003.bin").read_bytes()); data[len(data) // 2] ^= 4; (work / "out/scan-00003.bin").write_bytes(data)
    (work / "out/scan-00005.bin").write_bytes(b"")
    bulk.clean_files(**given, out=tmp_path / "a", progress="quiet", pattern="questions-*.parquet", size=500)
    bulk.clean_files(**given, out=tmp_path / "b", progress="quiet", pattern="questions-*.parquet", size=500)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    p, work = child(given, tmp_path / "c"), tmp_path / ".c.work"
    while p.poll() is None and commits(work) < 12: time.sleep(0.002)
    p.kill(); p.wait(); p.stderr.close()
    bulk.clean_files(**given, out=tmp_path / "c", progress="quiet", pattern="questions-*.parquet", size=500, threshold=None)
    assert "near copy" not in json.loads((tmp_path / "c/counts.json").read_text())["reasons"]

# --- memory

GROW = r"""
import re, sys, random, numpy as np, pyarrow as pa, pyarrow.parquet as pq
from mathrepro import bulk
n, folder = int(sys.argv[1]), sys.argv[2]
bulk.PART = 4096
words = np.array([f"word{i}" for i in range(3000)])
rng = np.random.default_rng(0)
with pq.ParquetWriter(f"{folder}/in.parquet", schema := pa.schema([("problem", pa.string())])) as f:
    for lo in range(0, n, 4000):
        texts = [" ".join(r) for r in words[rng.integers(0, 3000, (4000, 20))]]
        for i in range(0, 4000, 5): texts[i] = texts[i + 1] + " word1"
        f.write_table(pa.table([texts], schema=schema))
counts = bulk.clean_files(f"{folder}/in.parquet", [], f"{folder}/out", progress="quiet", answer_line=False, size=4000)
assert counts["kept"] < 0.81 * n
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024)   # ru_maxrss would begin with what the parent held
"""

def peak(n, folder):
    folder.mkdir()
    return int(subprocess.run([sys.executable, "-c", GROW, str(n), str(folder)], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout)

def test_memory_grows_by_few_bytes_a_row(tmp_path):
    small, large = peak(20_000, tmp_path / "small"), peak(140_000, tmp_path / "large")
    slope = (large - small) / 120_000
    print(f'{slope:.0f} bytes a row; {small / 2**20:.0f} and {large / 2**20:.0f} MiB')
    assert slope < 200, f"{slope:.0f} bytes a row ({small / 2**20:.0f} and {large / 2**20:.0f} MiB)"

# --- bad input, full disk

def test_bad_files_are_named(given, tmp_path):
    def refused(files, **options):
        with pytest.raises(UserError) as e: bulk.clean_files(files, given["references"], tmp_path / "out", progress="quiet", **options)
        assert "\n" not in str(e.value) and not (tmp_path / "out").exists()
        return str(e.value)
    t = problems_table([f"What is {i}?" for i in range(10)], "0", solution="#### 0")
    at = t.schema.get_field_index("problem")
    pq.write_table(t.set_column(at, "problem", pa.array([None if i == 7 else "x" for i in range(10)])), tmp_path / "null.parquet", row_group_size=3)
    assert "null.parquet, row group 2, row 1 of the group: problem is empty" in refused(tmp_path / "null.parquet")
    pq.write_table(t.set_column(at, "problem", pa.array(range(10))), tmp_path / "number.parquet")
    assert "number.parquet: column problem is int64, not text" in refused(tmp_path / "number.parquet")
    pq.write_table(t, tmp_path / "cut.parquet"); (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-50])
    assert "cut.parquet is damaged" in refused(tmp_path / "cut.parquet")
    assert "no file *.jsonl" in refused(given["files"], pattern="*.jsonl") and "no Parquet file at" in refused(tmp_path / "nowhere")
    assert "are left" in refused(given["files"], pattern="questions-*.parquet", rows=4999)

def test_two_at_once(given, tmp_path):
    p = child(given, tmp_path / "out")
    while p.poll() is None and commits(tmp_path / ".out.work") < 2: time.sleep(0.002)
    with pytest.raises(UserError, match="in use by process"): bulk.clean_files(**given, out=tmp_path / "out", progress="quiet", pattern="questions-*.parquet")
    p.kill(); p.wait(); p.stderr.close()

def test_full_disk(given, tmp_path):
    small = tmp_path / "small"; small.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True).returncode == 0
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted: signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, old[1]))
        with pytest.raises(UserError, match="no disk space left|hit the largest size") as e: bulk.clean_files(**given, out=small / "out", progress="quiet", pattern="questions-*.parquet", size=500)
        assert "\n" not in str(e.value) and "run again: finished work is kept" in str(e.value)
        if mounted: subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        else: resource.setrlimit(resource.RLIMIT_FSIZE, old)
        before = commits(small / ".out.work")
        counts = bulk.clean_files(**given, out=small / "out", progress="quiet", pattern="questions-*.parquet", size=500)
        assert before >= 2 and counts["rows"] == 5000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        if mounted: subprocess.run(["umount", "-l", str(small)])
