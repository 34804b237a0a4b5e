"Several data sets in one setting: from files of MWPBench's form to a student's accuracy by set and both averages, through the command line; and what is said when a name is wrong or a file is missing."
import json, os, subprocess
from pathlib import Path
from types import SimpleNamespace
import pytest
from mathrepro import arms, datasets, mwpbench, study
from mathrepro.config import UserError, paper_params
from mathrepro.records import Problem, read_rows
from mathrepro.runs import Run
from toys import script

pytestmark = pytest.mark.filterwarnings("ignore:.*(the paper prints|the published number|sha256)")
ROOT = Path(__file__).resolve().parent.parent
SMALL = [x for p in ("seeds=[0]", "side_seeds=[0]", "dial=[]", "data.train.n=60", "data.narrow={}", "data.valid.n=8", "data.test.n=0", "workers=1", "max_new_tokens=16", "size=8", "sizes=[4, 8]") for x in ("-p", p)]

def run_smoke(home, data, *more):
    return subprocess.run([script("mathrepro"), "run", "mathscale", "--profile", "smoke", "--no-report", *SMALL, *(x for p in more for x in ("-p", p))], cwd=ROOT, capture_output=True, text=True, timeout=900,
                          env={**os.environ, "MATHREPRO_HOME": str(home), "MATHREPRO_DATA": str(data), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"})

TOPICS = {"gsm8k": 12, "MATH.Algebra": 9, "MATH.Geometry": 6, "tal": 15, "agieval.sat-math": 6}
WORLD = datasets.load("world", "train", n=sum(TOPICS.values()), seed=5, steps=[1.0])      # one-step problems, some of which a tiny student can do

def row(topic, i, p, **more):
    return {"data_source": topic, "question_number": f"{topic}.{i}", "question": p.problem, "answer": p.answer, "license": "", "data_topic": topic, **more}

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder with a file of MWPBench's form for each split, GSM8K's own rows, and MATH's training questions without solutions."
    root = tmp_path_factory.mktemp("data")
    for d in ("mwpbench", "gsm8k", "math"): (root/d).mkdir()
    (root/"mwpbench/full_test.json").write_text("\n".join(json.dumps(row(t, i, p)) for (i, t), p in zip(enumerate(t for t, n in TOPICS.items() for _ in range(n)), WORLD)))
    (root/"mwpbench/full_train.json").write_text("\n".join(json.dumps(row(t, i, WORLD[i])) for t in ("gsm8k", "tal") for i in range(6)))
    (root/"gsm8k/train.jsonl").write_text("\n".join(json.dumps(dict(question=f"What is {i} and 1?", answer=f"{i}+1 = {i+1}\n#### {i+1}")) for i in range(10)))
    (root/"math/train.json").write_text(json.dumps([dict(problem=f"Find ${i}+1$.", answer=str(i + 1), type="Algebra", difficulty=1) for i in range(6)]))
    return root

@pytest.fixture
def at(data, monkeypatch):
    monkeypatch.setenv("MATHREPRO_DATA", str(data)); monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return data

def staged(home, **part):
    "The problems of a part that is declared as a study declares it."
    run = Run("several/x", workers=0, progress="quiet", home=home)
    s = study.problems(study.Study(run, [0], "world:xs", {"dataset": "world", "options": {"steps": [1.0]}, "test": dict(split="test", options={"strict": False}, **part)}, {}), "test")
    run.compute([s])
    return read_rows(s.path/"problems.parquet", Problem)

# --- through the command line

SETS = "mwpbench:gsm8k,math,tal-scq,agieval-sat"

@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    from mathrepro.report import read_results
    home = tmp_path_factory.mktemp("home")
    done = run_smoke(home, data, f"data.test.dataset={SETS}", "data.test.options.strict=false")
    assert done.returncode == 0, done.stdout + done.stderr
    (page,) = (home/"mathscale").glob("smoke*.ipynb")
    return read_results(page)

def test_a_run_shows_accuracy_by_set_and_both_averages(results):
    found = results
    rows = {r["set"]: r for r in found["sets"]["rows"]}
    assert list(rows) == ["GSM8K", "MATH", "TAL-SCQ", "AGIEval-SAT-Math", *(f"{of} average, {how}" for how in ("all items", "the code's rule") for of in ("micro", "macro"))]
    assert [r["items"] for r in rows.values()] == [12, 15, 15, 6, 48, 48, 48, 48] and not found["levels"]["rows"]
    for column in ("seeds alone, %", "8 rows, %"):
        acc = {s: rows[s][column]["estimate"] for s in list(rows)[:4]}
        assert all(r[column]["low"] <= r[column]["estimate"] <= r[column]["high"] for r in rows.values())
        assert abs(rows["macro average, all items"][column]["estimate"] - sum(acc.values())/4) < .06          # tables keep a decimal or more
        assert abs(rows["macro average, the code's rule"][column]["estimate"] - sum(acc.values())/5) < .06    # CollegeMath counts as a set with 0
        assert abs(rows["micro average, all items"][column]["estimate"] - sum(a*rows[s]["items"] for s, a in acc.items())/48) < .06
    assert "CollegeMath was not run" in found["sets"]["note"]
    arms_ = {r["arm"]: r["accuracy, %"]["estimate"] for r in found["arms"]["rows"]}
    assert abs(arms_["graph"] - rows["macro average, all items"]["8 rows, %"]["estimate"]) < .06

def test_bad_names_are_told_when_a_part_is_declared(at, tmp_path):
    for name, says in (("gsm8k+mathh", "unknown data set 'mathh'; did you mean math?"), ("mwpbnch", "unknown data set 'mwpbnch'; did you mean mwpbench?"), ("gsm8k+mwpbench:gsm8k", "gsm8k is named twice"),
                       ("mwpbench:", "names no part"), ("gsm8k+world", "world cannot stand among several sets"), ("mwpbench:ape210k", "has no row of Ape210k")):
        with pytest.raises(UserError, match=says): staged(tmp_path, dataset=name)

@pytest.mark.parametrize("name, says", [("mwpbench:gsm8k,tal-scp", "MWPBench has no part 'tal-scp'; did you mean tal-scq?"), ("mwpbench:tal-scq", "rows of TAL-SCQ, the paper prints 1,496")])
def test_bad_input_is_one_line(data, tmp_path, name, says):
    done = run_smoke(tmp_path, data, f"data.test.dataset={name}")
    lines = [l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]
    assert done.returncode == 2 and len(lines) == 1 and says in lines[0], done.stderr

def test_missing_files_are_named_together(tmp_path):
    (tmp_path/"none").mkdir()
    done = run_smoke(tmp_path/"home", tmp_path/"none", "data.test.dataset=mwpbench:tal-scq,math23k")
    (line,) = [l for l in done.stderr.splitlines() if l.startswith("mathrepro: error:")]
    assert done.returncode == 2 and "no rows of tal-scq, math23k; put the authors' file at $MATHREPRO_DATA/mwpbench/full_test.json, or the rows of each part at $MATHREPRO_DATA/mwpbench/<part>/test.jsonl" in line

def test_the_table_of_sets_is_the_averages_of_the_scores(at, tmp_path):
    "The same table from students that are right now and then (the tiny one above rarely is)."
    from mathrepro.papers import mathscale
    import pandas as pd
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), SETS, "test", options={"strict": False})
    rows = read_rows(tmp_path/"problems.parquet", Problem)
    right = lambda s, i: (7*i + i*i*s) % 5 < 2
    scored = lambda s: SimpleNamespace(table=lambda _: pd.DataFrame([dict(problem_id=p.id, index=0, verdict="right" if right(s, i) else "wrong", predicted="", gold="", grader="x") for i, p in enumerate(rows)]))
    largest = mathscale.size_arm(8)
    made = mathscale.Study(None, [0, 1], "world:xs", {"dataset": "world", "options": {}, "test": {"dataset": SETS, "split": "test"}}, {}, size=4, sizes=[4, 8])
    made.extra["test"], made.answers = SimpleNamespace(path=tmp_path), {(a, s): scored(s + 2*k) for k, a in enumerate(("seeds, as many steps", "graph", largest)) for s in (0, 1)}
    found = {r["set"]: r for r in mathscale.sets_table(made)}
    for k, column in enumerate(("seeds alone, %", "4 rows, %", "8 rows, %")):
        for as_, words in mathscale.DEFINITIONS.items():
            each = [mwpbench.averages(mwpbench.task_scores([SimpleNamespace(problem_id=p.id, verdict="right" if right(s + 2*k, i) else "wrong") for i, p in enumerate(rows)], rows), as_) for s in (0, 1)]
            for of in ("micro", "macro"): assert abs(found[f"{of} average, {words}"][column]["estimate"] - 50*sum(getattr(a, of) for a in each)) < 1e-9 and found[f"{of} average, {words}"][column]["estimate"] > 5
    assert abs(100*mathscale.accuracy(made, "graph").mean() - found["macro average, all items"]["4 rows, %"]["estimate"]) < 1e-9 and "CollegeMath was not run" in mathscale.sets_note(made)
    made.data["test"]["dataset"] = "world"
    assert mathscale.sets_table(made) == [] and "synthetic world" in mathscale.sets_note(made)

# --- the stages behind it

def test_ids_sources_and_choice(at, tmp_path):
    rows = staged(tmp_path, dataset=SETS, n=0)
    assert len({p.id for p in rows}) == len(rows) == 48 and [p.source for p in rows] == ["gsm8k"]*12 + ["math"]*15 + ["tal-scq"]*15 + ["agieval-sat"]*6
    assert all(p.id.startswith(p.source + "/") and mwpbench.topic_of(p) in TOPICS for p in rows)
    assert [p.id for p in staged(tmp_path, dataset=SETS, n=6)] == [p.id for p in rows[:6]]
    some = [p.id for p in staged(tmp_path, dataset=SETS, n=8, seed=3)]
    order = [p.id for p in rows]
    assert len(some) == 8 and some == sorted(some, key=order.index) != order[:8] and some == [p.id for p in datasets.take(rows, 8, 3)]
    held = [staged(tmp_path, dataset=SETS, n=0, hold_out=dict(fraction=.25, seed=0, part=part)) for part in ("train", "valid")]
    assert [len(h) for h in held] == [36, 12] and {p.id for h in held for p in h} == set(order)

def test_one_set_is_loaded_as_before(at, tmp_path):
    run = Run("several/y", workers=0, progress="quiet", home=tmp_path)
    settings = {"dataset": "gsm8k", "options": {"strict": False}, "train": {"split": "train", "n": 4, "seed": 0, "hold_out": {}, "dataset": "", "options": {}}}
    s = study.problems(study.Study(run, [0], "world:xs", settings, {}), "train")
    same = run.stage("other", arms.load_problems, dataset="gsm8k", split="train", n=4, seed=0, options={"strict": False})
    assert s.key == same.key
    run.compute([s])
    assert all("/" not in p.id for p in read_rows(s.path/"problems.parquet", Problem))

def test_training_rows_are_problems_with_a_solution(at, tmp_path):
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), "gsm8k+math", "train", options={"strict": False})
    assert len(read_rows(tmp_path/"problems.parquet", Problem)) == 16
    arms.gold_rows(SimpleNamespace(out=tmp_path), tmp_path)
    gold = read_rows(tmp_path/"rows.parquet", arms.TrainRow)
    assert len(gold) == 10 and all(r.solution and r.problem_id.startswith("gsm8k/") for r in gold)
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), "mwpbench:gsm8k,tal-scq", "train", options={"strict": False})      # GSM8K comes from the registry, for its solutions
    arms.gold_rows(SimpleNamespace(out=tmp_path), tmp_path)
    assert len(read_rows(tmp_path/"problems.parquet", Problem)) == 16 and len(read_rows(tmp_path/"rows.parquet", arms.TrainRow)) == 10
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), "mwpbench:tal-scq", "train", options={"strict": False})
    with pytest.raises(UserError, match="none of the 6 problems has a worked solution"): arms.gold_rows(SimpleNamespace(out=tmp_path), tmp_path)
    with pytest.raises(UserError, match="options steps: .* takes strict only"): mwpbench.load_sets(SimpleNamespace(out=tmp_path), "gsm8k+math", "train", options={"steps": [1.0]})

# --- the profiles

def test_paper_profiles_name_sets_that_exist():
    sizes = {}
    for paper in ("mathscale", "scalequest", "jiuzhang"):
        data = paper_params(paper, "paper")["data"]
        for part in ("train", "test", "narrow"):
            if data.get(part): sizes[paper, part] = list(mwpbench.sets_of(study.dataset_of(data, part), data[part]["split"]))
    assert len(sizes["mathscale", "train"]) == 6 and len(sizes["mathscale", "test"]) == 9 and sizes["mathscale", "narrow"] == ["gsm8k", "math"]
    assert sum(mwpbench.PARTS[s].train for s in sizes["mathscale", "train"]) == 20857 and sum(mwpbench.PARTS[s].test for s in sizes["mathscale", "test"]) == 17470
    assert sizes["scalequest", "test"] == ["gsm8k", "math", "college-math"] and len(sizes["jiuzhang", "test"]) == 5

@pytest.mark.skipif(not os.environ.get("MATHREPRO_DATA"), reason="MATHREPRO_DATA is not set: real benchmark files not at hand")
def test_real_gsm8k_and_math_together(tmp_path):
    for name in ("gsm8k", "math"):
        if not (datasets.locate(name, "train") and datasets.locate(name, "test")): pytest.skip(f"{name} is not in MATHREPRO_DATA")
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), "gsm8k+mwpbench:math", "test")
    rows = read_rows(tmp_path/"problems.parquet", Problem)
    assert len({p.id for p in rows}) == 6319 and {mwpbench.topic_of(p) for p in rows} == {"gsm8k", *mwpbench.MATH_TOPICS}
    mwpbench.load_sets(SimpleNamespace(out=tmp_path), "gsm8k+math", "train", n=500, seed=0)
    few = read_rows(tmp_path/"problems.parquet", Problem)
    assert len(few) == 500 and {p.source for p in few} == {"gsm8k", "math"}
