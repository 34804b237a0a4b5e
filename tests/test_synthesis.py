"From texts to training data behind stages: a teacher, a small model trained on its replies, filters, the truth, mixtures; workers, shards, kills, useless writers, bad input. Function-level tests are in nbs/57."
import json, signal, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, synthesis
from mathrepro.config import UserError
from mathrepro.education import WORLD_STEPS, read_pair
from mathrepro.keys import file_hash
from mathrepro.records import Problem, read_rows, read_table, write_table
from mathrepro.runs import Run
from mathrepro.synthesis import Fidelity, Request, ScreenedRow, Synthesised, Truth, fidelity_of, read_requests, written
from mathrepro.workers import close_workers
from mathrepro.world import texts
from mathrepro.world.texts import SourceText

AUTHOR = dict(engine="world-author")
ENGINE = dict(engine="transformers", dtype="float32", batch_size=128)
SFT = dict(epochs=2, batch_size=4, learning_rate=1e-3)
STAGES = ["grade", "middle", "tool"]

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def teacher(home, workers=0, n=300, shard=100, engine=AUTHOR, stages=STAGES):
    "run and the stages of a teacher's half, by name."
    run = Run("synthesis", workers=workers, home=home, progress="quiet")
    s = dict(texts=run.stage("texts", texts.load_texts, n=n, seed=0), test=run.stage("test", arms.load_problems, dataset="world", split="test", n=100))
    s["asked"] = run.stage("asked", synthesis.requests, texts=s["texts"], stages=stages)
    s["said"] = run.stage("said", synthesis.write, requests=s["asked"], engine=engine, n=2, temperature=0.7, shard=shard)
    s["screened"] = run.stage("screened", synthesis.screen, synthesised=[s["said"]], references=[s["test"]], near=0.9, same_numbers=True)
    s["truth"] = run.stage("truth", synthesis.fidelity, synthesised=[s["said"]])
    return run, s

FILES = dict(asked="requests.parquet", screened="screened.parquet", truth="truths.parquet")

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = teacher(tmp_path_factory.mktemp("done"))
    run.compute()
    return run, s

def test_workers_and_shards_change_nothing(done, tmp_path):
    run, s = teacher(tmp_path, workers=2, shard=64)
    run.compute()
    assert [file_hash(s[k].file(f)) for k, f in FILES.items()] == [file_hash(done[1][k].file(f)) for k, f in FILES.items()]
    assert [r.id for r in written(s["said"].path)] == [r.id for r in written(done[1]["said"].path)]
    assert next(r for r in run.ledger() if r["name"] == "said")["tokens_out"] > 600 * 10

def test_no_reply_is_lost(done):
    s = done[1]
    asked, rows = read_requests(s["asked"].path), written(s["said"].path)
    assert [(r.id, i) for r in asked for i in (0, 1)] == [(r.request_id, r.index) for r in rows] and len({r.id for r in rows}) == 600
    counts = s["said"].json("counts.json")
    assert counts["replies"] == 600 == counts["ok"] + sum(counts["reasons"].values()) == sum(c["replies"] for c in counts["stages"].values()) and counts["reasons"]
    assert all(r.ok == (r.reason == "") and (not r.ok or r.problem and r.solution) for r in rows)
    screened = read_rows(s["screened"].file("screened.parquet"), ScreenedRow)
    assert [r.id for r in screened] == [r.id for r in rows] and all(r.kept == (r.removed_by == "") for r in screened) and all(r.ok or r.removed_by == "reader" for r in screened)
    for r in screened:
        for part in synthesis.PARTS: assert getattr(r, part) in ("", "keep", "drop") and (getattr(r, part) != "drop" or getattr(r, f"{part}_reason"))
        assert (r.execution != "") == (r.ok and synthesis.has_program(r))
    kept = [r for r in screened if r.kept]
    assert [r.problem_id for r in read_rows(s["screened"].file("rows.parquet"), arms.TrainRow)] == [p.id for p in read_rows(s["screened"].file("problems.parquet"), Problem)] == [r.id for r in kept]
    counts = s["screened"].json("counts.json")
    assert counts["rows"] - sum(step["removed"] for step in counts["chain"]) == counts["kept"] == len(kept)

def test_filters_against_the_truth(done):
    "What the filters can know: no kept answer contradicts its own calculations, and invented outputs are gone."
    s = done[1]
    truth = {t.id: t for t in read_rows(s["truth"].file("truths.parquet"), Truth)}
    screened = read_rows(s["screened"].file("screened.parquet"), ScreenedRow)
    before, after = ({m["measure"]: m for m in fidelity_of(s["said"].path, screened=k) if m["stage"] == "all"} for k in (None, s["screened"].path))
    assert after["right"]["share"] > before["right"]["share"] and after["readable"]["share"] == 1
    invented = [r for r in screened if r.execution == "drop"]
    assert invented and all(r.stage == "tool" and not r.kept for r in invented)
    assert all(truth[r.id].right != 1 for r in invented if r.consistency == "keep"), "an answer that follows an invented output is wrong"

def test_fidelity_has_every_stage(done):
    s = done[1]
    rows = read_rows(s["truth"].file("fidelity.parquet"), Fidelity)
    assert {r.stage for r in rows} == {"all", *STAGES} and {r.measure for r in rows} == set(synthesis.MEASURES)
    assert all(r.k <= r.n and 0 <= r.low <= r.high <= 1 and (r.n == 0 or r.low <= r.share <= r.high) for r in rows)
    for m in synthesis.MEASURES: assert sum(r.k for r in rows if r.measure == m and r.stage != "all") == next(r.k for r in rows if r.measure == m and r.stage == "all")
    truths = read_rows(s["truth"].file("truths.parquet"), Truth)
    assert all(t.of_stage == (t.steps == WORLD_STEPS.get(t.stage, t.steps)) for t in truths if t.solvable == 1)

def test_a_small_model_learns_to_write(done, tmp_path_factory):
    "Teacher -> rows -> training -> writing -> filters -> truth, all as stages of one run."
    run, s = done
    more = run.stage("asked again", synthesis.requests, texts=run.stage("more texts", texts.load_texts, n=120, seed=1), stages=STAGES, form="compact")
    base, rows = run.stage("base", arms.base_model, model="world:m"), run.stage("rows", synthesis.synthesis_rows, synthesised=[s["said"]])
    model = run.stage("model", arms.train, base=base, rows=rows, sft=SFT, template="{problem}")
    said = run.stage("said again", synthesis.write, requests=more, engine=ENGINE, model=model, temperature=0.7, max_new_tokens=260)
    kept = run.stage("kept", synthesis.screen, synthesised=[said], references=[s["test"]], near=0.9, same_numbers=True)
    truth = run.stage("truth again", synthesis.fidelity, synthesised=[said])
    both = run.stage("both", synthesis.mixture, parts=[kept, s["screened"]], counts=[10, 50])
    run.compute([truth, kept, both])
    shares = truth.json("fidelity.json")
    assert shares["readable"] > 0.8 and shares["solvable"] > 0.3, shares
    made = written(said.path)
    assert {r.writer for r in made} == {model.path.name} and max(r.tokens for r in made) <= 260
    first, then = (set(read_rows(k.file("rows.parquet"), arms.TrainRow)) for k in (kept, s["screened"]))
    mixed = read_rows(both.file("rows.parquet"), arms.TrainRow)
    assert set(mixed[:10]) <= first and set(mixed[10:]) <= then and len(mixed) == 60

def test_killed_writing_goes_on(tmp_path):
    run, s = teacher(tmp_path / "calm", n=600, shard=8); run.compute([s["said"]])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_synthesis as t; run, s = t.teacher({str(tmp_path / 'killed')!r}, n=600, shard=8); run.compute([s['said']])"
    p = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/work/*/out/synthesised-*"))) < 5 and p.poll() is None and time.monotonic() < deadline: time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -9, "it was killed while it ran"
    again, resumed = teacher(tmp_path / "killed", n=600, shard=8); again.compute([resumed["said"]])
    hashes = lambda stage: {f.name: file_hash(f) for f in sorted(stage.path.glob("*")) if f.suffix == ".parquet" or f.name == "counts.json"}
    assert hashes(resumed["said"]) == hashes(s["said"]) and len(hashes(s["said"])) == 152
    assert next(r for r in again.ledger() if r["name"] == "said")["sessions"] > 1

def test_a_model_that_never_closes_a_section(done, tmp_path):
    "The base model knows nothing of the form: its replies are counted and kept, the message says what is wrong, and nobody asks again."
    for _ in range(2):
        run, s = teacher(tmp_path, n=100)
        base, asked = run.stage("base", arms.base_model, model="world:m"), run.stage("short", synthesis.requests, texts=s["texts"], form="compact")
        said = run.stage("untrained", synthesis.write, requests=asked, engine=ENGINE, model=base, max_new_tokens=40, shard=64)
        with pytest.raises(UserError, match=r"0 of 64 replies .*(no problem|no solution|cut).*max_new_tokens"): run.compute([said])
    kept = list(tmp_path.glob("work/*/out/synthesised-*"))
    assert len(kept) == 1 and len(read_rows(kept[0], Synthesised)) == 64

def folder(path, **tables):
    "A folder of tables, as stages leave it."
    path.mkdir(parents=True)
    for name, (rows, kind) in tables.items(): write_table(path / f"{name}.parquet", rows, kind)
    return path

class Ctx:
    "What a stage gets, for calling one by hand."
    def __init__(self, out): self.out = out; out.mkdir(parents=True, exist_ok=True)
    def progress(self, items, *a): return items
    def report(self, *a): pass
    def count(self, **a): pass
    def shards(self, n, size, name="shard"):
        for i, lo in enumerate(range(0, n, size)): yield i, lo, min(lo+size, n), self.out / f"{name}-{i:05d}.parquet"
    def commit(self, path, table): write_table(path, table)

def test_everything_filtered(done, tmp_path):
    rows = [replace(r, solution="So it is.") for r in written(done[1]["said"].path) if r.ok][:20]
    bad = folder(tmp_path / "bad", **{"synthesised-00000": (rows, Synthesised), "requests": ([], Request)})
    with pytest.raises(UserError, match="no row is left of 20: reader removed 0 of 20, consistency removed 20 of 20; most often .*no answer line"): synthesis.screen(Ctx(tmp_path / "out"), [bad], parts=["consistency"])
    assert len(read_rows(tmp_path / "out/screened.parquet", ScreenedRow)) == 20 and json.loads((tmp_path / "out/counts.json").read_text())["kept"] == 0
    with pytest.raises(UserError, match="20 replies are there twice"): synthesis.screen(Ctx(tmp_path / "twice"), [bad, bad], parts=["consistency"])

def test_test_problems_are_found(done, tmp_path):
    test = read_rows(done[1]["test"].file("problems.parquet"), Problem)
    rows = [r for r in written(done[1]["said"].path) if r.ok][:40]
    planted = [replace(r, problem=f"Listen. {t.problem}") for r, t in zip(rows[:20], [t for t in test if len(t.problem.split()) > 25])]
    both = folder(tmp_path / "in", **{"synthesised-00000": (planted + rows[20:], Synthesised)})
    synthesis.screen(Ctx(tmp_path / "out"), [both], [done[1]["test"].path], parts=["decontamination"])
    screened = read_rows(tmp_path / "out/screened.parquet", ScreenedRow)
    assert all(r.decontamination == "drop" and r.decontamination_of in {t.id for t in test} for r in screened[:len(planted)]) and sum(r.kept for r in screened) >= 10

def test_agreement_of_a_solver(done, tmp_path):
    "A trained solver is not needed: scores with known answers take its place."
    from mathrepro.answers import extract
    from mathrepro.records import Score
    run, s = done
    problems = read_rows(s["screened"].file("problems.parquet"), Problem)
    scores = [Score(p.id, i, "right", p.answer if k % 2 == 0 or i == 0 else "1/7", p.answer, "x") for k, p in enumerate(problems) for i in range(4)]
    solved = folder(tmp_path / "solved", scores=(scores, Score))
    synthesis.screen(Ctx(tmp_path / "out"), [s["said"].path], parts=["agreement"], solved=solved, unknown="drop")
    rows = {r.id: r for r in read_rows(tmp_path / "out/screened.parquet", ScreenedRow)}
    assert [rows[p.id].agreement for p in problems] == ["keep" if k % 2 == 0 else "drop" for k in range(len(problems))] and rows[problems[1].id].agreement_score == 0.25
    assert {r.agreement_reason for r in rows.values() if r.ok} == {"", "a solver answers otherwise", "not solved"}

def test_bad_input(done, tmp_path):
    run, s = done
    p = {k: v.path for k, v in s.items()}
    calls = {
        "no requests.parquet": lambda c: synthesis.write(c, p["texts"], AUTHOR),
        "no rows; there is nothing to write": lambda c: synthesis.write(c, folder(tmp_path / "none", requests=([], Request)), AUTHOR),
        "400 requests wanted, but 300 texts": lambda c: synthesis.requests(c, p["texts"], n=400),
        "unknown stage 'grad'": lambda c: synthesis.requests(c, p["texts"], stages=["grad"]),
        "form 'long' is unknown": lambda c: synthesis.requests(c, p["texts"], form="long"),
        "per_text='two'": lambda c: synthesis.requests(c, p["texts"], per_text="two"),
        "have the id of another one": lambda c: synthesis.requests(c, [p["texts"], p["texts"]]),
        "no texts in empty": lambda c: synthesis.requests(c, folder(tmp_path / "empty", texts=([], SourceText))),
        "no synthesised": lambda c: synthesis.screen(c, [p["asked"]]),
        "needs references": lambda c: synthesis.screen(c, [p["said"]]),
        "unknown filter 'duplicate'": lambda c: synthesis.screen(c, [p["said"]], parts=["duplicate"]),
        "needs solved": lambda c: synthesis.screen(c, [p["said"]], parts=["agreement"]),
        "rows of .* wanted, but it has": lambda c: synthesis.mixture(c, [p["screened"]], [9999]),
        "1 parts but 2 counts": lambda c: synthesis.mixture(c, [p["screened"]], [1, 2]),
        "order='sorted'": lambda c: synthesis.mixture(c, [p["screened"]], order="sorted"),
        "mixture: no rows": lambda c: synthesis.mixture(c, [p["screened"]], [0]),
    }
    for i, (message, call) in enumerate(calls.items()):
        with pytest.raises(UserError, match=message): call(Ctx(tmp_path / f"call{i}"))

def test_long_and_odd_texts(tmp_path):
    "A text of a million characters, an empty one, one that looks like a request: cut, left out, asked for."
    kinds = ["x " * 500_000, "   ", "Text: a\nStage: grade\n", "```\n[Problem]\n```", "\u2028é∑ \x00"]
    rows = [SourceText(str(i), "lesson", t, "[]", "[]", "test", -1) for i, t in enumerate(kinds)]
    synthesis.requests(Ctx(tmp_path / "out"), folder(tmp_path / "in", texts=(rows, SourceText)), per_text="all", stages=["aime", "tool"])
    asked, counts = read_requests(tmp_path / "out"), json.loads((tmp_path / "out/counts.json").read_text())
    assert len(asked) == 8 and counts["empty"] == 1 and counts["shortened"] == 1 and max(len(r.prompt) for r in asked) < 5000
