"Texts, requests, the author and the reader across modules and processes: declared rates, real programs, stages and workers. Function-level tests are in nbs/24a, 26b and 34e."
import json, re, sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mathrepro.config import UserError
from mathrepro.education import FORMS, REASONS, STAGES, TEXT_STAGES, WORLD_STEPS, asked_form, asked_stage, compact_pair, read_pair, request_for, tool_request
from mathrepro.engines.author import WorldAuthor, judge_pair
from mathrepro.engines.base import load_engine
from mathrepro.keys import file_hash
from mathrepro.programs import run_programs
from mathrepro.records import read_rows
from mathrepro.runs import Run
from mathrepro.workers import close_workers
from mathrepro.world.problems import problems
from mathrepro.world.texts import CUTS, SourceText, load_texts, text_points, world_texts

TARGET = ["money", "fractions"]
PERFECT = {k: 0.0 for k in WorldAuthor.RATES}

@pytest.fixture(scope="module", autouse=True)
def no_workers_left():
    yield
    close_workers()

@pytest.fixture(scope="module")
def texts(): return world_texts(600, seed=5, target=TARGET, relevant=.3)

def replies(texts, stages, form="request", n=1, **rates):
    "(text, stage, completion) of an author made by `load_engine`, with its tally."
    engine = load_engine(dict(engine="world-author", **rates))
    asks = [(t, stages[i % len(stages)]) for i, t in enumerate(texts)]
    done = engine.generate([request_for(t.text, s, form) for t, s in asks], n=n, temperature=0.6, seed=3)
    return [(*asks[c.prompt_index], c) for c in done], engine.tally

def near(share, n, rate): return abs(share - rate) < 4*(rate*(1-rate)/n)**.5 + .005

@pytest.mark.parametrize("form", FORMS)
def test_declared_rates_come_out(texts, form):
    about = [t for t in texts if t.points != "[]"]
    rates = dict(wrong=.2, off_text=.15, wrong_stage=.1, malformed=.06, refused=.03)
    rows, tally = replies(about, TEXT_STAGES, form, n=2, unclosed=.05 if form == "request" else 0, **rates)
    read = [(t, s, read_pair(c.text, c.finish)) for t, s, c in rows]
    assert set(r.reason for *_, r in read) <= {"", *REASONS} and len(rows) > 900
    judged = [judge_pair(r.value["problem"], r.value["solution"], t.text, s) for t, s, r in read if r.ok]
    assert all(j["solvable"] for j in judged)
    share = lambda k: sum(not j[k] for j in judged)/len(judged)
    for key, rate in dict(right="wrong", on_text="off_text", of_stage="wrong_stage").items(): assert near(share(key), len(judged), rates[rate]), (key, share(key))
    why = Counter(r.reason for *_, r in read)
    assert why["unclosed"] >= tally["unclosed"] and why["refused"] == tally["refused"] and len(read) - len(judged) == tally["unclosed"] + tally["malformed"] + tally["refused"]
    assert near((tally["malformed"])/len(read), len(read), .06) and not tally["not_composed"]

def test_programs_really_run(texts):
    rows, tally = replies(texts, ["tool"], malformed=0, unclosed=0, refused=0, filler_refused=0, wrong=.25)
    pairs = [read_pair(c.text).value for *_, c in rows][:300]
    blocks = [re.search(r"```python\n(.*?)\n```\n```output\n(.*?)\n```", v["solution"], re.S).groups() for v in pairs]
    results = run_programs([code for code, _ in blocks], workers=2)
    assert not [r.error for r in results if r.error]
    printed, truth = [r.output.strip() for r in results], [judge_pair(v["problem"])["answer"] for v in pairs]
    invented, wrong = sum(p != o for p, (_, o) in zip(printed, blocks)), sum(p != t for p, t in zip(printed, truth))
    assert near(invented/300, 300, .6) and near(wrong/300, 300, .25), (invented, wrong)
    assert all(v["solution"].endswith(f"\n#### {o}") for v, (_, o) in zip(pairs, blocks)), "the answer believes the recorded output"
    assert all(judge_pair(v["problem"], v["solution"])["right"] == (o == t) for v, (_, o), t in zip(pairs, blocks, truth))

def test_true_author_writes_what_was_asked(texts):
    for form in FORMS:
        for t, s, c in replies(texts[:180], list(STAGES), form, **PERFECT)[0]:
            r = read_pair(c.text, c.finish)
            j = judge_pair(r.value["problem"], r.value["solution"], t.text, s)
            assert r.ok and j["right"] and j["steps"] == WORLD_STEPS.get(s, j["steps"]) and j["on_text"] == bool(json.loads(t.points)), (t, s, c.text)

def test_target_texts_inspire_target_problems(texts):
    "What makes the choice of texts matter: problems that relevant texts inspire are mostly about the target's topics."
    from mathrepro.world.knowledge import POINTS
    counts = {0: Counter(), 1: Counter()}
    for t, s, c in replies(texts, ["high"], **PERFECT)[0]:
        r = read_pair(c.text)
        for k in judge_pair(r.value["problem"])["points"]: counts[t.relevant][POINTS[k].topic in TARGET] += 1
    share = {k: c[True]/sum(c.values()) for k, c in counts.items()}
    assert share[1] > .6 and share[0] < .3, share

def test_tool_request_with_example_is_understood(texts):
    example = "Ben has 3 eggs.\n```python\nprint(3)\n```\n```output\n3\n```\nSo 3.\n#### 3"
    asked = [tool_request(t.text, example) for t in texts[:20]]
    assert [asked_stage(a) for a in asked] == [("tool", t.text) for t in texts[:20]]
    assert all("```python" in read_pair(c.text).value["solution"] for c in WorldAuthor(**PERFECT).generate(asked))

def test_limit_cuts_and_is_counted(texts):
    asks = [request_for(t.text, "aime", f) for t in texts[:100] for f in FORMS]
    read = [read_pair(c.text, c.finish) for c in WorldAuthor(**PERFECT).generate(asks, max_new_tokens=30)]
    assert {r.reason for r in read} == {"cut"} and all("problem" in r.value for r in read if r.value)

def test_other_engines_requests_are_not_ours():
    from mathrepro import prompts, rewrites
    q = problems(1)[0]["problem"]
    for other in (prompts.concept_request(q), prompts.question_request(["money"], ["spending money"]), prompts.check_request(q, "1"), rewrites.judge_request(q), rewrites.rewrite_request(q, "difficulty")):
        assert asked_form(other) == ("", "", "") and read_pair(WorldAuthor().generate([other])[0].text).reason == "refused"
    for s in STAGES: assert prompts.asked(request_for(q, s)) == ("", {}) == rewrites.asked_rewrite(request_for(q, s))

def test_stage_gives_the_same_bytes_in_worker_and_here(tmp_path):
    options, seen = dict(target=TARGET, relevant=.3), []
    (tmp_path/"set").mkdir()
    (tmp_path/"set"/"a.md").write_text("# Sums\nAdding is fun. "*200); (tmp_path/"set"/"b.jsonl").write_text("".join(json.dumps(dict(body=f"Text {i}. It goes on.")) + "\n" for i in range(50)))
    for workers in (0, 2):
        run = Run("texts", workers=workers, home=tmp_path/str(workers), progress="quiet")
        stages = [run.stage("world", load_texts, n=300, seed=5, options=options), run.stage("real", load_texts, source=str(tmp_path/"set"/"b.jsonl"), n=20, seed=1, options=dict(text="body", kind="wiki"))]
        run.compute()
        seen.append([file_hash(s.file("texts.parquet")) for s in stages])
    assert seen[0] == seen[1]
    rows = read_rows(stages[0].file("texts.parquet"), SourceText)
    assert rows == world_texts(600, 5, TARGET, .3)[:300] and all(text_points(t.text) == json.loads(t.points) or set(text_points(t.text)) == set(json.loads(t.points)) for t in rows)
    counts = stages[1].json("counts.json"); assert counts["kept"] == 20 and counts["texts"] == 50 and counts["kinds"] == dict(wiki=20)

def test_malformed_rows_and_giants_through_the_stage(tmp_path):
    run = Run("bad", workers=0, home=tmp_path/"home", progress="quiet")
    bad = tmp_path/"bad.jsonl"; bad.write_text('{"text": "One."}\n{"text": "Two.}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2"): run.compute([run.stage("bad", load_texts, source=str(bad))])
    giant = tmp_path/"giant.jsonl"; giant.write_text(json.dumps(dict(text="We add numbers. "*70000)) + "\n" + '{"text": "Short."}\n')
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 100,000 characters"):
        s = run.stage("giant", load_texts, source=str(giant)); run.compute([s])
    assert [len(t.text) <= CUTS["web"].characters and t.text[-1] == "." for t in read_rows(s.file("texts.parquet"), SourceText)] == [True, True] and s.json("counts.json")["long"] == 1

def test_interrupted_or_in_parts_the_replies_stay(texts):
    asks, whole = [request_for(t.text, "middle") for t in texts[:60]], WorldAuthor()
    a = [c.text for c in whole.generate(asks, n=2, temperature=1.0, seed=9)]
    b = [c.text for i in (40, 0, 20) for c in WorldAuthor().generate(asks[i:i+20], n=2, temperature=1.0, seed=9)]
    assert a == b[40:] + b[:40] and whole.usage.new_tokens > 1000
    assert a[::2] == [c.text for c in WorldAuthor().generate(asks, n=1, temperature=1.0, seed=9)], "more samples leave the first as they were"

def test_small_models_sloppy_endings():
    q, s = "Anna has 3 apples. Anna buys 4 more apples. How many apples does Anna have now?", "3+4 = 7.\n#### 7"
    endless = compact_pair(q, s) + "\n" + ("Problem: Ben has 3 eggs. "*40)
    assert read_pair(endless, "length") == (True, dict(problem=q, solution=s), "") and read_pair(compact_pair(q, "3+4 = "*200), "length").reason == "cut"
