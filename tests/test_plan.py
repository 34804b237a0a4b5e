"Plans through the command line: every paper and profile, fast, in one line when something is wrong; stage counts as the studies declare them."
import json, resource, sys
from pathlib import Path
import pytest
from mathrepro import plan as planning
from mathrepro.config import paper_params, papers, profiles
from mathrepro.plan import Phase, cost_table, money, plan, plan_of, predicted_vs_actual, seconds, total
from toys import call, make_checkout, script

ROOT = Path(__file__).resolve().parent.parent
ALL = [(n, p) for n in sorted(papers()) if n in planning.MODELS for p in profiles(n)]

def mathrepro(*args, cwd=ROOT): return call(script("mathrepro"), *args, cwd=cwd)

def timed(*args, tries=3):
    "The cheapest of a few calls, in processor time: the machine may be busy."
    used = lambda: (r := resource.getrusage(resource.RUSAGE_CHILDREN)).ru_utime + r.ru_stime
    took = []
    for _ in range(tries):
        start = used(); r = mathrepro("plan", *args); took.append(used() - start)
        assert r.returncode == 0 and not r.stderr, r.stderr
        if took[-1] < 1: break
    return r.stdout, min(took)

@pytest.mark.parametrize("paper, profile", ALL)
def test_every_paper_and_profile_under_a_second(paper, profile):
    out, took = timed(paper, "--profile", profile)
    assert out.startswith(f"{paper} at profile {profile} on ") and "\nAssumed:\n" in out and "total" in out
    assert took < 1, f"{took:.2f} s"
    assert ("GPU-hours" in out.splitlines()[0]) == (profile not in ("smoke", "cpu")), out.splitlines()[0]

@pytest.mark.parametrize("gpu", planning.DEVICES)
def test_every_gpu(gpu):
    out, _ = timed("rft", "--profile", "paper", "--gpu", gpu)
    assert planning.DEVICES[gpu].title in out.splitlines()[0] and ("dollars" in out.splitlines()[0]) == (gpu != "cpu")

def test_imports_are_light():
    r = call(sys.executable, "-c", "from mathrepro.cli import main; main(['plan', 'rft', '--profile', 'paper'])\nimport json, sys; print(json.dumps([m for m in ('torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'scipy') if m in sys.modules]))", cwd=ROOT)
    assert r.returncode == 0 and json.loads(r.stdout.splitlines()[-1]) == [], r.stderr

@pytest.mark.parametrize("args, says", [
    (["rff"], "no paper 'rff'; did you mean rft?"), (["rft", "--profile", "cpuu"], "no profile 'cpuu' for rft; did you mean cpu?"),
    (["rft", "--profile", "paper", "--gpu", "h101"], "no device 'h101' in the price list; did you mean h100?"), (["rft", "--profile", "cpu", "-p", "sft.epoch=1"], "did you mean sft.epochs?"),
    (["rft", "--profile", "paper", "--price", "-1"], "price is -1.0; give dollars per GPU-hour"), (["rft", "--profile", "cpu", "-p", "k=many"], "parameter k: expected integer")])
def test_bad_input_is_one_line(args, says):
    r = mathrepro("plan", *args)
    lines = r.stderr.splitlines()
    assert r.returncode == 2 and len(lines) == 1 and lines[0].startswith("mathrepro: error: ") and says in lines[0], r.stderr

def test_paper_without_a_model_says_so(tmp_path):
    r = mathrepro("plan", "toy", "--profile", "cpu", cwd=make_checkout(tmp_path/"checkout"))
    assert r.returncode == 0 and len(r.stdout.splitlines()) == 1 and "no cost model" in r.stdout

def test_help_has_examples():
    r = mathrepro("plan", "--help")
    assert r.returncode == 0 and "examples:\n  mathrepro plan" in r.stdout and "--gpu" in r.stdout

def hours(p): return total(p)["hours"]

def test_more_of_anything_costs_more():
    base = plan("rft", "paper")
    for more in ("k=200", "sft.epochs=6", "seeds=[0, 1, 2, 3]", "vote.n=200"): assert hours(plan("rft", "paper", [more])) > hours(base), more
    base = plan("mathscale", "cpu")
    for more in ("size=600", "sizes=[64, 128, 2048]", "data.test.n=160", "surplus=3.0"): assert hours(plan("mathscale", "cpu", [more])) > hours(base), more
    base = plan("scalequest", "cpu")
    for more in ("size=512", "k=8", "pairs=400", "judged=800", "surplus=20.0", "seeds=[0, 1, 2, 3, 4, 5, 6, 7]", "sizes=[32, 1024]", "data.test.n=1000", "sft.epochs=4"): assert hours(plan("scalequest", "cpu", [more])) > hours(base), more
    base = plan("jiuzhang", "cpu")
    for more in ("first=150", "k=64", "size=300", "mass=1000", "surplus=3.0", "price=2.0", "texts.n=800", "stages=[grade, middle, high]", "seeds=[0, 1, 2, 3, 4, 5, 6, 7]", "sft.epochs=9", "writer.epochs=20", "data.test.n=4000", "data.general.n=4000"):
        assert (hours(plan("jiuzhang", "cpu", [more])) > hours(base)) == (not more.startswith("stages")), more
    few, many = (plan_of("scalequest", {"rows": n, "questions": {"n": n}}, "paper") for n in (10_000, 20_000))
    assert hours(few) < hours(many) < hours(plan_of("scalequest", {}, "paper")) and total(few)["money"] < total(many)["money"]
    assert all(x["plan, GPU-h"] <= y["plan, GPU-h"] for x, y in zip(few.beside, many.beside))

def test_faster_devices_take_less():
    at = {g: hours(plan("scalequest", "paper", gpu=g)) for g in ("a100", "a100-80g", "h100", "h200")}
    assert at["a100"] > at["a100-80g"] > at["h100"] > at["h200"] > 0
    cheap = plan("rft", "paper", price=1.0)
    assert abs(total(cheap)["money"] - total(cheap)["hours"]) < 1e-6

def test_scalequest_table4():
    rows = plan_of("scalequest", {}, "paper").beside
    body, last = rows[:-1], rows[-1]
    assert [round(sum(r["paper, GPU-h"] for r in body), 1), last["paper, GPU-h"]] == [522.9, 522.9] and len(body) == 8
    assert abs(sum(r["plan, GPU-h"] for r in body) - last["plan, GPU-h"]) < 1e-9 and 0.5 < last["plan / paper"] < 2
    order = lambda key: [r["row"] for r in sorted(body, key=lambda r: -r[key])[:3]]
    assert set(order("plan, GPU-h")) == set(order("paper, GPU-h")) and order("plan, GPU-h")[0] == "Response generation"

def test_rft_table4():
    rows = {r["row"]: r for r in plan("rft", "paper").beside}
    assert len(rows) == 15 and all(0.5 < rows[f"{what}, 7B"]["plan / paper"] < 2 for what in ("SFT", "sampling", "RFT-U33B"))

def declared(paper, profile, home, overrides=()):
    "All stages of a study, declared as its notebook does and not run."
    from importlib import import_module
    from mathrepro.runs import Run, ancestors
    m, p = import_module(f"mathrepro.papers.{paper}"), paper_params(paper, profile, tuple(overrides))
    how = dict(sft=p["sft"], template=p["template"], style=p["answer_style"], max_new_tokens=p.get("max_new_tokens", p.get("sampling", {}).get("max_new_tokens")), engine=p["engine"])
    run = Run("plan/test", home=home)
    if paper == "rft":
        study = m.Study(run, p["seeds"], p["base"], p["data"], profile=profile, how=how, sampling=p["sampling"], k=p["k"], ks=p["ks"], few=p["side_seeds"])
        m.declare_sft(study, p["fractions"]); m.declare_selections(study, p["pool"], p["rules"]); m.declare_arms(study); m.declare_ladder(study, p["ladder"]); m.declare_votes(study, p["vote"])
    elif paper == "scalequest":
        keys = ("generators", "prefix", "qft", "qpo", "draw", "screen", "reply", "head", "pairs", "k", "size", "sizes", "surplus", "spare")
        study = m.Study(run, p["seeds"], p["base"], p["data"], profile=profile, how=how, critic=p["critic"] or {"engine": "world-critic"}, few=p["side_seeds"], **{k: p[k] for k in keys})
        m.declare_seeds(study); m.declare_data(study); m.declare_single(study); m.declare_sizes(study); m.declare_controls(study, p["judged"]); m.declare_students(study)
    elif paper == "jiuzhang":
        keys = ("target", "texts", "stages", "ask", "writer", "draw", "influence", "methods", "first", "k", "size", "mass", "surplus", "price", "screen", "tool", "one_run")
        study = m.Study(run, p["seeds"], p["base"], p["data"], profile=profile, how=how, author=p["author"] or {"engine": "world-author"}, **{k: p[k] for k in keys})
        m.declare_data(study); m.declare_choices(study); m.declare_boost(study); m.declare_tools(study); m.declare_runs(study); m.declare_students(study)
    else:
        keys = ("concepts", "compose", "reply", "clean", "size", "sizes", "surplus")
        study = m.Study(run, p["seeds"], p["base"], p["data"], profile=profile, how=how, teacher=p["teacher"], judge=p["judge"], few=p["side_seeds"], **{k: p[k] for k in keys})
        m.declare_seeds(study); m.declare_data(study, p["dial"]); m.declare_sizes(study); m.declare_students(study)
    return list(ancestors(list(run.stages.values())).values())

OTHERS = [("scalequest", "smoke", ("seeds=[0, 1, 2]", "side_seeds=[0, 1]", "sizes=[2, 4, 16]")), ("scalequest", "smoke", ("generators=['world:xs', 'world:xs']",)),
          ("scalequest", "smoke", ("judged=36", "size=3")), ("scalequest", "cpu", ("sizes=[256]",)),
          ("jiuzhang", "smoke", ("seeds=[0, 1]", "methods=[influence, random, bm25]"))]

@pytest.mark.parametrize("paper, profile, overrides", [*((n, p, ()) for n, p in ALL if (n, p) not in (("scalequest", "paper"), ("jiuzhang", "paper"))), *OTHERS])
def test_stage_counts_are_those_of_the_study(paper, profile, overrides, tmp_path):
    names = [s.name for s in declared(paper, profile, tmp_path, overrides)]
    ledger = [dict(name=n, tokens_in=0, tokens_out=0, wall_s=0.0, state="computed") for n in names]
    rows = predicted_vs_actual(ledger, plan(paper, profile, overrides))
    assert not [r for r in rows if r["stages, planned"] != r["stages"]] and rows[-1]["stages"] == len(names)

@pytest.mark.parametrize("profile", ("smoke", "cpu", "gpu"))
def test_scalequest_samples_are_those_of_the_study(profile, tmp_path):
    from mathrepro.papers import scalequest
    stages, made = declared("scalequest", profile, tmp_path), {}
    for w in plan("scalequest", profile).works: made[w.prefix] = made.get(w.prefix, 0) + w.samples
    drawn = lambda first: sum(s.params["n"] for s in stages if s.name.startswith(first + "/"))
    assert (made["questions"], made["pool"]) == (drawn("questions"), drawn("pool"))
    assert (planning.UNTUNED, planning.SINGLE) == (scalequest.UNTUNED, scalequest.SINGLE) and planning.FILTERS == scalequest.FILTERS[:-1]

def test_scalequest_paper_plans_one_data_set():
    ours, theirs = plan("scalequest", "paper"), plan_of("scalequest", {}, "paper")
    assert any("not the arms and seeds of the study" in n for n in ours.notes) and len(ours.works) == len(theirs.works) and len(ours.beside) == 9
    assert [r["row"] for r in ours.beside] == [r["row"] for r in theirs.beside] and abs(hours(ours)/hours(theirs) - 1) < .01

def test_several_sets_are_counted_and_stay_fast():
    rows = lambda *more: next(w.samples for w in plan("mathscale", "paper", more).works if w.prefix == "solve")
    nine, ten, two = rows(), rows("data.test.dataset=mwpbench"), rows("data.test.dataset=gsm8k+math")
    assert nine/ten == 17470/18408 and two/ten == 6319/18408
    seeds = {w.prefix: w.samples for w in plan("mathscale", "paper").works}["concepts"]
    assert seeds == 20857 - round(.05*20857) + 7473 + 7474 - round(.05*(7473 + 7474))     # and the narrow ones
    assert any("lengths of college-math" in n for n in plan("mathscale", "paper").notes)
    _, took = timed("mathscale", "--profile", "paper", "-p", "data.test.dataset=mwpbench:gsm8k,agieval-sat+svamp")
    assert took < 1
    r = mathrepro("plan", "mathscale", "--profile", "paper", "-p", "data.test.dataset=gsm8k+mwpbench:tal-scp")
    assert r.returncode == 2 and "did you mean tal-scq?" in r.stderr and len(r.stderr.splitlines()) == 1

def test_cost_table_of_a_run(tmp_path):
    from mathrepro.runs import Run
    from stages_for_tests import note
    run = Run("toy/x", workers=0, progress="quiet", home=tmp_path)
    a = run.stage("train/a", note, text="a")
    run.stage("solve/a", note, text="b"); run.compute()
    table = cost_table(run.ledger(), [Phase("training", "train", ("train",), 5)], price=3600.0)
    wall = {r["name"]: r["wall_s"] for r in run.ledger()}
    assert [r["phase"] for r in table] == ["training", "everything else", "total"] and a.path.exists()
    assert abs(table[0]["dollars"] - wall["train/a"]) < 1e-9 and abs(table[2]["hours"]*3600 - sum(wall.values())) < 1e-9 and abs(sum(r["share"] for r in table[:2]) - 1) < 1e-9
