"Heads and selection as stages of a run: labels, training, scoring, choice, resumption, bad input. Function-level tests are in nbs/33a and 56."
import json, math, random, shutil, sys
from pathlib import Path

import numpy as np, pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro import arms, heads, select
from mathrepro.config import UserError
from mathrepro.evaluate import curve
from mathrepro.heads import HeadRow, HeadScore, read_scores
from mathrepro.records import Problem, Sample, Score, read_rows, write_table
from mathrepro.runs import Run
from mathrepro.select import Candidate
from mathrepro.workers import Context

def invented(ctx, problems: Path, n: int, seed: int = 0):
    "Stage: n samples per problem whose correctness shows in the text, harder problems failing more often: gold solutions, wrong ones that end in 'maybe', silent ones."
    rows, rng, samples = read_rows(problems / "problems.parquet", Problem), random.Random(seed), []
    for p in rows:
        for i in range(n):
            kind = "silent" if rng.random() < 0.1 else "right" if rng.random() < 0.9 - 0.2 * json.loads(p.meta)["steps"] else "wrong"
            text = p.solution if kind == "right" else p.solution.split("\n")[0] + f"\nmaybe\n#### {rng.choice([1001, 1002])}" if kind == "wrong" else "maybe"
            samples.append(Sample(p.id, i, arms.prompt_of("plain", p.problem), text, seed, "invented", 0.7, "stop", 9))
    write_table(ctx.out / "samples-00000.parquet", samples, Sample)

def without_answers(ctx, problems: Path):
    "Stage: the same questions as a generator would leave them, and one that is not of this world."
    rows = [Problem(p.id, p.problem, "", "", "generated", "train") for p in read_rows(problems / "problems.parquet", Problem)]
    write_table(ctx.out / "problems.parquet", rows[:-1] + [Problem(rows[-1].id, "Is seven odd?", "", "", "generated", "train")], Problem)

STEPS = dict(steps=[0.4, 0.3, 0.3])
SETTINGS = dict(learning_rate=3e-3, epochs=3, batch_size=16)

def pipeline(home, settings=SETTINGS):
    "run and its stages by name: everything from sampled answers to chosen rows."
    run = Run("select", workers=0, home=home, progress="quiet")
    s = dict(base=run.stage("base", arms.base_model, model="world:xs"))
    for part, n in (("train", 80), ("test", 60)):
        s[part] = run.stage(part, arms.load_problems, dataset="world", split=part, n=n, options=STEPS)
        s[f"bare/{part}"] = run.stage(f"bare/{part}", without_answers, problems=s[part])
        s[f"samples/{part}"] = run.stage(f"samples/{part}", invented, problems=s[part], n=4)
        s[f"label/{part}"] = run.stage(f"label/{part}", select.label, problems=s[f"bare/{part}"], samples=s[f"samples/{part}"])
        s[f"rows/{part}"] = run.stage(f"rows/{part}", heads.reward_rows, samples=s[f"samples/{part}"], verdicts=s[f"label/{part}"])
    s["head"] = run.stage("head", heads.train_head, base=s["base"], rows=s["rows/train"], settings=settings)
    s["score"] = run.stage("score", heads.score, head=s["head"], rows=s["samples/test"], shard=100)
    for how in select.HOW:
        s[how] = run.stage(f"choose/{how}", select.choose, problems=s["bare/test"], candidates=s["samples/test"], scores=s["score"], verdicts=s["label/test"], how=how)
    return run, s

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run, s = pipeline(tmp_path_factory.mktemp("select"))
    run.compute()
    return run, s

def test_labels_come_from_the_worlds_truth(done):
    s = done[1]
    counts = s["label/test"].json("counts.json")
    assert (counts["problems"], counts["with_truth"], counts["without_truth"], counts["samples"]) == (60, 59, 1, 59 * 4)
    gold = {p.id: p.answer for p in read_rows(s["test"].file("problems.parquet"), Problem)}
    assert all(r.gold == gold[r.problem_id] for r in read_rows(s["label/test"].file("scores.parquet"), Score))
    rows = read_rows(s["rows/test"].file("labelled.parquet"), HeadRow)
    assert len(rows) == s["rows/test"].json("counts.json")["labelled"] < 59 * 4 and all((r.label == 0) == ("maybe" in r.text) for r in rows)

def test_a_reward_head_learns_and_is_costed(done):
    run, s = done
    facts, counts = s["head"].json("training.json"), s["score"].json("counts.json")
    assert facts["kind"] == "reward" and facts["examples"] > 50 and np.mean(facts["losses"][:3]) > 3 * facts["loss"]
    cost = {r["name"]: r for r in run.ledger()}
    assert cost["head"]["tokens_in"] == facts["tokens"] and cost["score"]["tokens_in"] == counts["tokens"] > 0 and cost["score"]["flops"] == 2 * facts["parameters"] * counts["tokens"]
    scores = read_scores(s["score"].path)
    assert [(x.problem_id, x.index) for x in scores] == [(x.problem_id, x.index) for x in arms.read_samples(s["samples/test"].path)] and counts["cut"] == 0
    by = {(x.problem_id, x.index): x.score for x in scores}
    rows, train = (read_rows(s[f"rows/{k}"].file("labelled.parquet"), HeadRow) for k in ("test", "train"))
    table = heads.compare_scores([r.problem_id for r in rows], [r.label for r in rows], {"head": [by[r.problem_id, r.index] for r in rows], "length": heads.length_scores(train, rows), "ridge": heads.ridge_scores(train, rows)}, n=100)
    assert table.set_index(["measure", "scorer"]).value["auc within questions", "head"] > 0.95 and set(table.scorer) == {"head", "length", "ridge"}

def test_every_candidate_is_accounted_for(done):
    s = done[1]
    right = {}
    for how in select.HOW:
        counts, table, rows = s[how].json("counts.json"), read_rows(s[how].file("candidates.parquet"), Candidate), read_rows(s[how].file("rows.parquet"), arms.TrainRow)
        assert len(table) == counts["candidates"] == 240 == sum(counts["reasons"].values()) and counts["kept"] == len(rows) == sum(c.chosen for c in table) == 60 - counts["without_choice"]
        assert not any(c.chosen for c in table if c.answer is None) and all(r.origin == "sampled" and "####" in r.solution for r in rows)
        assert {c.problem_id for c in table if c.verdict == "unknown"} == {table[-1].problem_id}
        right[how] = counts["right"] / counts["judged"]
    a = select.candidate_arrays(s["reward"].path)
    assert a.left_out == 1 and right["oracle"] == 1 and right["reward"] > right["random"]
    assert abs(select.best_of_k(a.correct, a.scores, 4) * 59 - right["reward"] * s["reward"].json("counts.json")["judged"]) < 1e-9        # k = n: the choice itself
    table = select.selection_table(a.correct, a.answers, a.scores, ks=(1, 2, 4))
    same = curve([s["label/test"].table("scores.parquet")], ks=(2, 4)).set_index(["measure", "k"]).value
    mine = table.set_index(["rule", "k"]).value
    for k in (2, 4): assert abs(mine["majority", k] - same["maj@k", k]) < 1e-12 and abs(mine["oracle", k] - same["pass@k", k]) < 1e-12

def test_difficulty_and_pointwise_heads(done, tmp_path):
    run, s = done
    graded = run.stage("gold", select.label, problems=s["train"], samples=s["samples/train"], truth="gold")
    rows = run.stage("hard", heads.difficulty_rows, problems=s["train"], samples=graded)
    hard = run.stage("hard/head", heads.train_head, base=s["base"], rows=rows, kind="difficulty", settings=dict(learning_rate=3e-3, epochs=4, batch_size=16))
    rated = run.stage("hard/score", heads.score, head=hard, rows=s["bare/test"])
    point = run.stage("point", heads.train_head, base=s["base"], rows=s["rows/train"], settings=dict(loss="pointwise", max_steps=3))
    run.compute([rated, point])
    assert run.stage("hard", heads.difficulty_rows, problems=s["train"], samples=graded).json("counts.json")["labelled"] == 80
    scores, facts = [x.score for x in read_scores(rated.path)], hard.json("training.json")
    assert len(scores) == 60 and 0.2 < facts["offset"] < 0.8 and abs(np.mean(scores) - facts["offset"]) < 0.3 and np.mean(facts["losses"][-5:]) < np.mean(facts["losses"][:3])
    assert point.json("training.json")["steps"] == 3 and abs(point.json("training.json")["losses"][0] - math.log(2)) < 0.4
    assert heads.fail_rates(graded.path).keys() == {p.id for p in read_rows(s["train"].file("problems.parquet"), Problem)}

def test_responses_without_gold_answers(done):
    run, s = done
    got = [run.stage(f"responses/{shard}", select.responses, model=s["base"], problems=s["bare/test"], engine=dict(engine="transformers"), template="plain", n=2, max_new_tokens=12, limit=10, shard=shard) for shard in (4, 1024)]
    run.compute(got)
    assert not list(got[0].path.glob("scores*")) and got[0].json("counts.json")["samples"] == 20 and len(list(got[0].path.glob("samples-*"))) == 5
    assert arms.read_samples(got[0].path) == arms.read_samples(got[1].path)
    with pytest.raises(UserError, match="no response could be chosen from 20 candidates of 60 problems.*20 no answer"):
        run.compute([run.stage("none", select.choose, problems=s["bare/test"], candidates=got[0], how="first")])
    with pytest.raises(UserError, match="has no scores.parquet"): heads.fail_rates(got[0].path)

def test_scoring_resumes_by_shard(done, tmp_path, monkeypatch):
    s, calls, real = done[1], [], heads.head_scores
    def dies(*a):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*a)
    monkeypatch.setattr(heads, "head_scores", dies)
    with pytest.raises(KeyboardInterrupt): heads.score(Context(tmp_path), s["head"].path, s["samples/test"].path, shard=100)
    assert [p.name for p in sorted(tmp_path.glob("out/*"))] == ["scored-00000.parquet"]
    heads.score(ctx := Context(tmp_path), s["head"].path, s["samples/test"].path, shard=100)
    assert len(calls) == 4 and read_scores(ctx.out) == read_scores(s["score"].path)

def test_training_resumes_from_a_checkpoint(done, tmp_path, monkeypatch):
    s, settings = done[1], dict(SETTINGS, max_steps=6, save_every=2)
    heads.train_head(calm := Context(tmp_path / "calm"), s["base"].path, s["rows/train"].path, settings=settings)
    killed = Context(tmp_path / "killed")
    def stop(n, total=None, what=""):
        if n == 5: raise KeyboardInterrupt
    killed.report = stop
    with pytest.raises(KeyboardInterrupt): heads.train_head(killed, s["base"].path, s["rows/train"].path, settings=settings)
    steps = []
    again = Context(tmp_path / "killed"); again.report = lambda n, total=None, what="": steps.append(n)
    heads.train_head(again, s["base"].path, s["rows/train"].path, settings=settings)
    assert steps == [5, 6] and json.loads((again.out / "training.json").read_text())["losses"] == json.loads((calm.out / "training.json").read_text())["losses"]

def spoiled(folder, target):
    "A copy of a head whose weights are NaN."
    import torch
    from safetensors.torch import load_file, save_file
    shutil.copytree(folder, target)
    f = target / "model/model.safetensors"
    save_file({k: torch.full_like(v, math.nan) if "score" in k else v for k, v in load_file(f).items()}, f, metadata={"format": "pt"})
    return target

def test_bad_input_is_named(done, tmp_path):
    s, at = done[1], lambda name: Context(tmp_path / name)
    first = read_scores(s["score"].path)[0]
    with pytest.raises(UserError, match=rf"240 of 240 scores are NaN.*{first.problem_id}/0, .*float32"): heads.score(at("a"), spoiled(s["head"].path, tmp_path / "nan"), s["samples/test"].path)
    with pytest.raises(UserError, match="base-.* is no trained head"): heads.score(at("b"), s["base"].path, s["samples/test"].path)
    with pytest.raises(UserError, match="holds nothing for a reward head.*samples"): heads.score(at("c"), s["head"].path, s["test"].path)
    with pytest.raises(UserError, match="240 candidates .first: problem .*, sample 0. have no score|of 240 candidates"):
        write_table(tmp_path / "few/scored-00000.parquet", [HeadScore("x", 0, 1.0, 1)], HeadScore)
        select.choose(at("d"), s["bare/test"].path, s["samples/test"].path, tmp_path / "few")
    one = tmp_path / "one"; write_table(one / "labelled.parquet", [HeadRow("a", i, "p", "t", 1.0) for i in range(3)], HeadRow)
    with pytest.raises(UserError, match="all 3 rows of one have the label 1; .*nothing to tell apart"): heads.train_head(at("e"), s["base"].path, one)
    write_table(one / "labelled.parquet", [HeadRow("a", 0, "p", "t", 1.0), HeadRow("b", 0, "p", "t", 0.0)], HeadRow)
    with pytest.raises(UserError, match="no question among 2 has both a right and a wrong answer"): heads.train_head(at("f"), s["base"].path, one)
    write_table(one / "labelled.parquet", [HeadRow("a", 0, "p", "t", 0.5), HeadRow("b", 0, "p", "t", None)], HeadRow)
    with pytest.raises(UserError, match="2 rows of one have no usable label .first: problem a, sample 0, label 0.5"): heads.train_head(at("g"), s["base"].path, one)
    empty = tmp_path / "empty"; write_table(empty / "scores.parquet", [Score("a", 0, "wrong", "7", "", "hash")], Score)
    with pytest.raises(UserError, match="empty was graded against a gold answer"): heads.fail_rates(empty)
    for k in (0, 5):
        with pytest.raises(UserError, match="1..4"): select.best_of_k(np.zeros((2, 4)), np.zeros((2, 4)), k)

@pytest.mark.parametrize("k", [math.nan, None, math.inf, -math.inf, "3", True, 1.5, [2]])
def test_bad_k_is_named(k):
    for call in (lambda: select.best_of_k([[1, 0, 1]], [[1, 2, 3]], k), lambda: select.oracle_of_k([[1, 0, 1]], k), lambda: select.majority_of_k([[1, 0, 1]], [["1", "2", "1"]], k)):
        with pytest.raises(UserError, match=r"^k is .*choose a whole number in 1\.\.3$"): call()

@pytest.mark.parametrize("correct, scores, says", [([[1, 0], [1]], [[1, 2], [3]], "correct must be numbers"), ([[1, 0]], [["a", "b"]], "scores must be numbers"), ([[1, 0]], [[1, 2], [3]], "scores must be numbers"),
    ([["1", "0"]], [[1, 2]], "correct must be numbers"), ([[1, None]], [[1, 2]], "correct must be numbers"), (None, [[1, 2]], "correct must be numbers"), ([[1, 0]], [[None, 1]], "scores must be numbers"), ([[1, 1j]], [[1, 2]], "correct must be numbers")])
def test_bad_arrays_are_named(correct, scores, says):
    with pytest.raises(UserError, match=f"^{says}"): select.best_of_k(correct, scores, 1)
    assert select.best_of_k([[True, False]], np.array([[2, 1]], np.int8), np.int64(1)) == 0.5 == select.best_of_k([[1, 0]], [[2, -math.inf]], 1.0)

def test_a_tokenizer_with_a_chat_template_and_without_padding(done, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(done[1]["base"].path, base)
    f = base / "model/tokenizer_config.json"
    config = json.loads(f.read_text()); config.pop("pad_token")
    config["chat_template"] = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    f.write_text(json.dumps(config))
    heads.train_head(ctx := Context(tmp_path / "head"), base, done[1]["rows/train"].path, settings=dict(chat=True, max_steps=2))
    heads.score(scored := Context(tmp_path / "scored"), ctx.out, done[1]["rows/test"].path)
    lone = Context(tmp_path / "lone"); heads.score(lone, ctx.out, done[1]["rows/test"].path, batch_tokens=1)
    a, b = read_scores(scored.out), read_scores(lone.out)
    assert np.allclose([x.score for x in a], [x.score for x in b], atol=1e-5) and a[0].tokens > 10
