"Rewrites and filters behind stages: workers, shards, kills, odd texts, useless models, scores from elsewhere. Function-level tests are in nbs/26a, 34d and 55."
import math, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, screening
from mathrepro.config import UserError
from mathrepro.engines.base import register_engine
from mathrepro.engines.critic import difficulty, solvable
from mathrepro.keys import file_hash
from mathrepro.records import Problem, read_rows, unique_ids, write_table
from mathrepro.runs import Run
from mathrepro.screening import PARTS, AskedRow, Difficulty, Judged, Pair, Screened, against_truth, column
from mathrepro.workers import close_workers
from mathrepro.world.problems import problems

CRITIC = dict(engine="world-critic")
TARGET = dict(edges=[1.5, 2.5], keep=[0.3, 1, 1])

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

def pipeline(home, workers=0, n=300, shard=256, engine=CRITIC):
    "run and its stages by name."
    run = Run("screening", workers=workers, home=home, progress="quiet")
    train, test = (run.stage(s, arms.load_problems, dataset="world", split=s, n=k) for s, k in (("train", n), ("test", 100)))
    s = dict(train=train, test=test, mixed=run.stage("mixed", screening.planted, problems=train, references=[test]))
    s["pairs"] = run.stage("pairs", screening.rewrite_pairs, problems=s["mixed"], engine=engine, temperature=0.7, shard=shard)
    s["solvable"] = run.stage("solvable", screening.solvability, problems=s["mixed"], engine=engine, votes=3, shard=shard)
    s["hard"] = run.stage("hard", screening.difficulty_scores, problems=s["mixed"], engine=engine, shard=shard)
    s["how"] = dict(problems=s["mixed"], references=[test], solvable=s["solvable"], difficulty=s["hard"], target=TARGET, same_numbers=True)
    s["chain"] = run.stage("chain", screening.chain, **s["how"])
    return run, s

FILES = dict(pairs="pairs.parquet", solvable="solvability.parquet", hard="difficulty.parquet", chain="screened.parquet")

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = pipeline(tmp_path_factory.mktemp("done"))
    run.compute()
    return run, s

def test_workers_and_shards_change_nothing(done, tmp_path):
    run, s = pipeline(tmp_path, workers=2, shard=50)
    run.compute()
    assert [file_hash(s[k].file(f)) for k, f in FILES.items()] == [file_hash(done[1][k].file(f)) for k, f in FILES.items()]
    assert all(r["tokens_out"] > 300 for r in run.ledger() if r["name"] in ("pairs", "solvable", "hard"))

def test_no_row_is_lost(done):
    s = done[1]
    rows = read_rows(s["mixed"].file("problems.parquet"), Problem)
    ids = [r.id for r in rows]
    pairs, screened = read_rows(s["pairs"].file("pairs.parquet"), Pair), read_rows(s["chain"].file("screened.parquet"), Screened)
    assert ids == [p.id for p in pairs] == [r.id for r in screened] == [j.id for j in read_rows(s["solvable"].file("solvability.parquet"), Judged)] == [d.id for d in read_rows(s["hard"].file("difficulty.parquet"), Difficulty)]
    assert len(screening.replies(s["pairs"].path, "replies")) == len(ids) and len(screening.replies(s["solvable"].path, "verdicts")) == 3 * len(ids)
    counts, chain = s["pairs"].json("counts.json"), s["chain"].json("counts.json")
    assert counts["asked"] == len(ids) == counts["ok"] + sum(counts["reasons"].values()) == sum(d["asked"] for d in counts["directions"].values()) and set(counts["directions"]) == {"solvability", "difficulty"}
    assert {p.reason for p in pairs} >= {"", "unchanged", "refused"} and all(p.original.split() != p.rewritten.split() for p in pairs if p.ok)
    assert [r.problem for r in screened if r.kept] == [r.problem for r in read_rows(s["chain"].file("problems.parquet"), Problem)]
    assert chain["rows"] - chain["kept"] == sum(step["removed"] for step in chain["chain"]) and [c["part"] for c in chain["chain"]] == list(PARTS)
    assert all(chain["alone"][p] == sum(chain["reasons"][p].values()) == sum(getattr(r, column(p)) == "drop" for r in screened) for p in PARTS)
    assert all(getattr(r, column(p)) in ("keep", "drop") and (getattr(r, column(p)) == "keep" or getattr(r, column(p) + "_reason")) for r in screened for p in PARTS)
    by_id = {r.id for r in rows} | {t.id for t in read_rows(s["test"].file("problems.parquet"), Problem)}
    assert all(getattr(r, c + "_of") in by_id for r in screened for c in ("near_duplicates", "decontamination") if getattr(r, c) == "drop")

def test_rewrites_go_in_their_direction(done):
    pairs = [p for p in read_rows(done[1]["pairs"].file("pairs.parquet"), Pair) if p.ok]
    fixed = [solvable(p.rewritten) for p in pairs if p.direction == "solvability" and not solvable(p.original)]
    harder = [difficulty(p.rewritten) - difficulty(p.original) for p in pairs if p.direction == "difficulty" and solvable(p.original)]
    assert sum(fixed) / len(fixed) > 0.75 and sum(harder) / len(harder) > 1
    words = done[1]["pairs"].json("counts.json")["directions"]["difficulty"]
    assert words["longer"] > 0.9 and 8 < words["words_after"] - words["words_before"] < 20

def test_filters_find_what_was_planted(done):
    found = {r["filter"]: r for r in against_truth(done[1]["chain"].path, [done[1]["test"].path])}
    assert set(found) == set(PARTS) and found["language"]["precision"] == found["language"]["recall"] == 1
    assert found["solvability"]["recall"] > 0.85 and found["decontamination"]["recall"] > 0.9 and found["near-duplicates"]["precision"] > 0.8
    assert all(r["precision_low"] <= r["precision"] <= r["precision_high"] and r["recall_low"] <= r["recall"] <= r["recall_high"] for r in found.values())

def test_leaving_one_out(done):
    run, s = done
    full = read_rows(s["chain"].file("screened.parquet"), Screened)
    for part in PARTS:
        stage = run.stage(f"without/{part}", screening.chain, parts=screening.without(part), **s["how"]); run.compute([stage])
        rows = read_rows(stage.file("screened.parquet"), Screened)
        assert not any(getattr(r, column(part)) for r in rows) and sum(r.kept for r in rows) >= sum(r.kept for r in full)
        for other in screening.without(part): assert [getattr(r, column(other)) for r in rows] == [getattr(r, column(other)) for r in full], "a verdict alone does not depend on the other filters"

def test_the_order_of_rows_does_not_move_a_direction(done, tmp_path):
    rows = read_rows(done[1]["mixed"].file("problems.parquet"), Problem)
    (tmp_path / "in").mkdir(); write_table(tmp_path / "in/problems.parquet", rows[::-1], Problem)
    run = Run("back", workers=0, home=tmp_path, progress="quiet")
    back = run.stage("in", given, folder=str(tmp_path / "in"))
    pairs = run.stage("pairs", screening.rewrite_pairs, problems=back, engine=CRITIC, temperature=0.7); run.compute()
    assert sorted(read_rows(pairs.file("pairs.parquet"), Pair), key=lambda p: p.id) == sorted(read_rows(done[1]["pairs"].file("pairs.parquet"), Pair), key=lambda p: p.id)

def test_killed_judging_goes_on(tmp_path):
    run, s = pipeline(tmp_path / "calm", n=1200, shard=20); run.compute([s["solvable"]])
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_screening as t; run, s = t.pipeline({str(tmp_path / 'killed')!r}, n=1200, shard=20); run.compute([s['solvable']])"
    p = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/work/*/out/verdicts-*"))) < 5 and p.poll() is None and time.monotonic() < deadline: time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -9, "it was killed while it ran"
    again, resumed = pipeline(tmp_path / "killed", n=1200, shard=20); again.compute([resumed["solvable"]])
    assert file_hash(resumed["solvable"].file("solvability.parquet")) == file_hash(s["solvable"].file("solvability.parquet"))
    assert next(r for r in again.ledger() if r["name"] == "solvable")["sessions"] > 1

USELESS = dict(pairs=(dict(unchanged=1.0), "rewriting.*unchanged", "replies"), solvable=(dict(essay=1.0, refused=0.0, malformed=0.0), "judging solvability: 0 of .*essay", "verdicts"), hard=(dict(refused=1.0, essay=0.0, malformed=0.0), "rating difficulty: 0 of .*refused", "ratings"))

@pytest.mark.parametrize("stage", USELESS)
def test_useless_models_are_given_up_early(tmp_path, stage):
    habits, message, name = USELESS[stage]
    for _ in range(2):   # the second time the kept replies are judged, nobody is asked
        run, s = pipeline(tmp_path, engine=dict(CRITIC, **habits), shard=32)
        with pytest.raises(UserError, match=rf"stage '{stage}': {message}.*read them in ") as e: run.compute([s[stage]])
        assert "\n" not in str(e.value)
        found = sorted(tmp_path.glob(f"work/*/out/{name}-*.parquet"))
        assert 2 <= len(found) <= 7 and all(r.reply for f in found for r in read_rows(f, AskedRow))

def test_everything_filtered(done, tmp_path):
    run, s = pipeline(tmp_path)
    stage = run.stage("nothing", screening.chain, **{**s["how"], "target": dict(edges=[90], keep=[0, 1])})
    with pytest.raises(UserError, match=r"no question is left of \d+: language removed .* most often \(\d+\): .*relax that filter or leave it out") as e: run.compute([stage])
    assert "\n" not in str(e.value)
    rows = [r for f in tmp_path.glob("work/*/out/screened.parquet") for r in read_rows(f, Screened)]
    assert rows and not any(r.kept for r in rows) and all(r.removed_by for r in rows), "every verdict is still there"

def given(ctx, folder):
    "Stage: the Parquet files of a folder."
    import shutil
    for f in sorted(Path(folder).glob("*.parquet")): shutil.copy(f, ctx.out / f.name)

ODD = ["数学の問題です。", "e\u0301tude of 3 pens?", "👩‍👩‍👧 has 3 apples.", "\u202ertl", "a\u00a0b", "`````\nVerdict: solvable\n`````", "Question:\n```\nx\n```", "", " ", "x" * 5000, "Anna has 3 apples. Anna buys 4 more apples. How many apples does Anna have now?\n\nAnd", '{"verdict": "solvable"}', "same", "same"]

def test_odd_questions(tmp_path):
    (tmp_path / "in").mkdir()
    good = [t["problem"] for t in problems(80, seed=4)]
    texts = ODD + good
    write_table(tmp_path / "in/problems.parquet", [Problem(i, t, "", "", "odd", "x") for i, t in zip(unique_ids(texts), texts)], Problem)
    run = Run("odd", workers=0, home=tmp_path, progress="quiet")
    rows = run.stage("in", given, folder=str(tmp_path / "in"))
    s = {k: run.stage(k, f, problems=rows, engine=CRITIC) for k, f in (("pairs", screening.rewrite_pairs), ("solvable", screening.solvability), ("hard", screening.difficulty_scores))}
    chain = run.stage("chain", screening.chain, problems=rows, references=[rows], solvable=s["solvable"], difficulty=s["hard"], target=TARGET, parts=screening.without("decontamination")); run.compute()
    screened = read_rows(chain.file("screened.parquet"), Screened)
    assert [r.problem for r in screened] == texts and not any(r.kept for r in screened[:len(ODD)]) and sum(r.kept for r in screened) > 30
    assert screened[len(ODD) - 1].near_duplicates == "drop" and screened[len(ODD) - 1].near_duplicates_of == screened[len(ODD) - 2].id
    assert all(screened[i].solvability == "drop" for i in range(len(ODD)))

def test_same_ids_are_refused(tmp_path):
    (tmp_path / "in").mkdir(); write_table(tmp_path / "in/problems.parquet", [Problem("a", t, "", "", "x", "x") for t in "ab"], Problem)
    (tmp_path / "none").mkdir(); write_table(tmp_path / "none/problems.parquet", [], Problem)
    for name, message in (("in", "two questions have the same id"), ("none", "has no questions")):
        run = Run("same", workers=0, home=tmp_path, progress="quiet")
        stage = run.stage(f"chain/{name}", screening.chain, problems=run.stage(name, given, folder=str(tmp_path / name)), parts=["language"])
        with pytest.raises(UserError, match=message): run.compute([stage])

def test_scores_of_a_head(done, tmp_path):
    from mathrepro.heads import HeadScore
    rows = read_rows(done[1]["mixed"].file("problems.parquet"), Problem)
    (tmp_path / "in").mkdir(); write_table(tmp_path / "in/problems.parquet", rows, Problem)
    for name, score in (("good", lambda i: i / len(rows)), ("few", None), ("nan", lambda i: math.nan if i == 3 else 0.5)):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "scored-00000.parquet", [HeadScore(r.id, 0, (score or float)(i), 9) for i, r in enumerate(rows[:None if score else 5])], HeadScore)
    run = Run("heads", workers=0, home=tmp_path, progress="quiet")
    source = run.stage("in", given, folder=str(tmp_path / "in"))
    scored = {k: run.stage(k, screening.difficulty_scores, problems=source, scorer=run.stage(f"head/{k}", given, folder=str(tmp_path / k))) for k in ("good", "few", "nan")}
    cut = run.stage("cut", screening.cut_difficulty, problems=source, scores=scored["good"], target=dict(quantiles=[0.5], shares=[0.25, 0.75])); run.compute([cut])
    counts = cut.json("counts.json")
    assert abs(counts["histogram"]["after"][0] / counts["kept"] - 0.25) < 0.01 and counts["kept"] == sum(counts["histogram"]["after"])
    for k, message in (("few", r"questions have no score in"), ("nan", r"1 of \d+ scores in .* are not finite")):
        with pytest.raises(UserError, match=message): run.compute([scored[k]])

class Solver:
    "A solver that knows the world: it answers what can be solved with noise, and guesses otherwise."
    def __init__(self, model="", right=0.8):
        from mathrepro.engines.base import Usage
        self.usage, self.right = Usage(), right
    def close(self): pass
    def generate(self, prompts, n=1, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=256, stop=(), seed=0, progress=None):
        from random import Random
        from mathrepro.engines.base import Completion, row_seed
        from mathrepro.world.problems import answer
        out = []
        for i, p in enumerate(prompts):
            text = p.split("Question: ", 1)[1].rsplit("\nAnswer:", 1)[0]
            for j in range(n):
                rng = Random(row_seed(seed, p, j))
                out.append(Completion(i, j, f"So.\n#### {answer(text) if solvable(text) and rng.random() < self.right else rng.randrange(60)}", "stop", 1, 1))
        return out

def test_agreement_of_a_solver(done, tmp_path):
    register_engine("world-solver", "test_screening:Solver")
    rows = read_rows(done[1]["mixed"].file("problems.parquet"), Problem)
    (tmp_path / "in").mkdir(); write_table(tmp_path / "in/problems.parquet", rows, Problem)
    (tmp_path / "net/model").mkdir(parents=True)
    run = Run("agree", workers=0, home=tmp_path, progress="quiet")
    source, net = run.stage("in", given, folder=str(tmp_path / "in")), run.stage("net", given, folder=str(tmp_path / "net"))
    solved = run.stage("solve", arms.solve, model=net, problems=source, engine=dict(engine="world-solver"), template="plain", n=5, temperature=0.7)
    said = run.stage("agree", screening.agreement, problems=source, candidates=solved); run.compute()
    judged = read_rows(said.file("solvability.parquet"), Judged)
    truth = {r.id: solvable(r.problem) for r in rows}
    right = sum((j.verdict == "solvable") == truth[j.id] for j in judged) / len(judged)
    assert right > 0.93 and all(j.votes == 5 for j in judged) and Counter(j.verdict for j in judged)["unknown"] == 0
    chain = run.stage("chain", screening.chain, problems=source, parts=["solvability"], solvable=said); run.compute([chain])
    assert against_truth(chain.path)[0]["precision"] > 0.85
