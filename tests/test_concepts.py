"ConceptGraph against plain programs, over processes, at the paper's size, and with odd labels."
import json, os, subprocess, sys, unicodedata
from collections import Counter
from itertools import combinations
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mathrepro.concepts import CLEAN, KINDS, ConceptGraph, WalkRules, clean_fold, legs_of, synthetic_records, walk_block
from mathrepro.config import UserError
from mathrepro.walks import walk_reference, walker_seeds

def python(code, **env):
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert r.returncode == 0, r.stderr
    return r.stdout

@pytest.fixture(scope="module")
def big(): return ConceptGraph.build(synthetic_records())

def plain_graph(records, min_count):
    "Labels that survive, and weights of pairs ((kind, label), (kind, label)), with counters."
    sets = [{("topic", x) for x in r["topics"]} | {("kp", x) for x in r["knowledge_points"]} for r in records]
    count = Counter(x for s in sets for x in s)
    sets = [{x for x in s if count[x] >= min_count and x[1].strip()} for s in sets]
    return set().union(*sets), Counter(frozenset(p) for s in sets for p in combinations(s, 2))

def test_import_is_light():
    heavy = "scipy networkx pandas pyarrow torch matplotlib"
    assert python(f"import sys, mathrepro.concepts, mathrepro.walks; print([m for m in {heavy.split()} if m in sys.modules])").strip() == "[]"

def test_same_seed_same_compositions_in_every_process():
    code = "import json; from mathrepro.concepts import *; g = ConceptGraph.build(synthetic_records(800, 60, 200)); print(json.dumps([g.sample(300, seed=5), g.shuffled(2).sample(50, seed=1), g.uniform(50, seed=1), g.restrict(topics=.5).sample(20)]))"
    assert python(code, PYTHONHASHSEED="1") == python(code, PYTHONHASHSEED="2")

def test_million_walks_keep_to_their_sub_graphs(big):
    "Every step of 10^6 walks is an edge of the sub-graph that it belongs to, by the records themselves."
    _, pairs = plain_graph(synthetic_records(), 2)
    t, k = {x: i for i, x in enumerate(big.topics)}, {x: i for i, x in enumerate(big.knowledge_points)}
    edges = {kind: set() for kind in KINDS}
    for (ka, a), (kb, b) in map(tuple, pairs):
        if ka == kb == "topic": edges["topic-topic"] |= {(t[a], t[b]), (t[b], t[a])}
        elif ka == kb: edges["kp-kp"] |= {(k[a], k[b]), (k[b], k[a])}
        else: edges["topic-kp"].add((t[a], k[b]) if ka == "topic" else (t[b], k[a]))
    for revisit, blocks in (("allow", 32), ("never", 4)):
        walks = topic_steps = kp_steps = 0
        for i in range(blocks):
            b = walk_block(big, WalkRules(revisit=revisit), 11, i)
            last = np.where(b.topics[2] >= 0, b.topics[2], b.topics[1])
            legs = [("topic-topic", x, y) for x, y in zip(b.topics, b.topics[1:])] + [("topic-kp", last, b.points[0])] + [("kp-kp", x, y) for x, y in zip(b.points, b.points[1:])]
            for kind, x, y in legs:
                on = (y >= 0) & ((x != y) | (kind == "topic-kp"))        # equal: no neighbour, or all of them forbidden; the walker stayed
                assert set(zip(x[on].tolist(), y[on].tolist())) <= edges[kind]
                if revisit == "allow" and kind != "topic-kp": assert not (big.edges[kind].degree[x[(x == y) & (y >= 0)]] > 0).any()
            assert (b.topics[1] >= 0).all() and (b.points[0] >= 0).all()
            for part in (b.topics, b.points): assert not ((part[1:] >= 0) & (part[:-1] < 0)).any()
            walks += len(b.walker)
        assert revisit != "allow" or walks >= 10**6

@pytest.mark.parametrize("rules", [{}, {"alpha": 0}, {"alpha": 2.5, "eps": .1}])
def test_steps_have_the_exact_probabilities(big, rules):
    "Chi-square of all steps from the largest topic hub, for the transition that is published."
    from scipy.stats import chisquare
    hub = int(big.edges["topic-kp"].degree.argmax())
    rows, columns, P = big.transition("topic-kp", **rules)
    p = P[rows.index(big.topics[hub])].toarray().ravel()
    seen = np.zeros(len(columns))
    for i in range(40):
        b = walk_block(big, WalkRules(topic_steps=(0, 1), kp_steps=(0, 0), **rules), 3, i)
        last = np.where(b.topics[1] >= 0, b.topics[1], b.topics[0])
        seen += np.bincount(b.points[0][last == hub], minlength=len(columns))
    assert seen[p == 0].sum() == 0
    order = np.argsort(-p)[:(p > 0).sum()]
    few = np.cumsum(p[order]) <= 1 - 20 / seen.sum() if seen.sum() * p[p > 0].min() < 5 else np.ones(len(order), bool)
    group = lambda x: np.r_[x[order][few], x[order][~few].sum()] if (~few).any() else x[order]
    assert seen.sum() > 500 and chisquare(group(seen), group(p) / p.sum() * seen.sum()).pvalue > 1e-4

def test_two_million_in_time_and_memory():
    code = """if True:
        import resource, time
        from mathrepro.concepts import *
        g = ConceptGraph.build(synthetic_records())
        t = time.process_time(); c = g.sample_arrays(2_000_000); t = time.process_time() - t
        s = c.strings()
        print(t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if __import__("sys").platform == "darwin" else 2**20), len(set(s)))"""
    seconds, gib, different = map(float, python(code).split())
    assert seconds < 15 and gib < 2 and different == 2_000_000, (seconds, gib, different)

labels = st.text(st.characters(exclude_categories=()), min_size=0, max_size=4) | st.sampled_from(["a", "b", "c", "é", "e\u0301", "数学", "π²", "\u200f", "🧮", " a", "A."])
some_records = st.lists(st.fixed_dictionaries({"id": st.integers() | st.text(max_size=3), "topics": st.lists(labels, max_size=3), "knowledge_points": st.lists(labels, max_size=5)}), min_size=1, max_size=25)

@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(some_records, st.integers(1, 3))
def test_agrees_with_counters(records, min_count):
    nodes, pairs = plain_graph(records, min_count)
    mixed = [p for p in pairs if len({k for k, _ in p}) == 2]
    try: graph = ConceptGraph.build(records, min_count)
    except UserError as e:
        assert not mixed and "\n" not in str(e)
        return
    assert mixed and graph.topics == tuple(sorted(x for k, x in nodes if k == "topic")) and graph.knowledge_points == tuple(sorted(x for k, x in nodes if k == "kp"))
    g = graph.to_networkx()
    assert set(g) == nodes and {frozenset((a, b)): d["weight"] for a, b, d in g.edges(data=True)} == dict(pairs)
    for kind in KINDS:
        a, b = kind.split("-")
        rows, columns, P = graph.transition(kind)
        assert np.allclose(np.asarray(P.sum(1)).ravel(), 1) and P.shape == (len(rows), len(columns))
        for i, u in enumerate(rows):
            w = np.array([pairs.get(frozenset([(a, u), (b, v)]), 0) if (a, u) != (b, v) else 0 for v in columns], float)
            assert np.allclose(P[i].toarray().ravel(), np.where(w > 0, w + 1e-5, 0) / np.where(w > 0, w + 1e-5, 0).sum())
    found = graph.sample_arrays(60, seed=1, partial=True)
    listed = found.strings()
    assert len(listed) == len(set(listed)) > 0 and listed == [found[i] for i in range(len(found))]
    for t, k in listed:
        assert 1 <= len(t) <= 3 and 1 <= len(k) <= 5 and t == tuple(sorted(set(t))) and k == tuple(sorted(set(k))) and set(t) <= set(graph.topics) and set(k) <= set(graph.knowledge_points)
        assert any(frozenset([("topic", x), ("kp", y)]) in pairs for x in t for y in k)
    control = graph.shuffled(3)
    assert all((control.degrees()[k] == d).all() for k, d in graph.degrees().items())
    assert {r.label for r in graph.rejected} | set(graph.topics) | set(graph.knowledge_points) == {x for r in records for x in r["topics"] + r["knowledge_points"]}

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(["allow", "no-backtrack", "never"]), st.sampled_from([(0, 0), (0, 1), (1, 2), (3, 3)]), st.sampled_from([(0, 0), (0, 4), (2, 6)]), st.sampled_from([0, .5, 1, 3]), st.sampled_from(["stay", "drop"]))
def test_rules(seed, revisit, topic_steps, kp_steps, alpha, dead_end):
    graph = SMALL
    rules = dict(revisit=revisit, topic_steps=topic_steps, kp_steps=kp_steps, alpha=alpha, dead_end=dead_end)
    more, less = (graph.sample_arrays(n, seed, partial=True, **rules) for n in (120, 40))
    assert more.strings()[:len(less)] == less.strings()
    sizes = more.sizes()
    assert (sizes >= 1).all() and (sizes[:, 0] <= topic_steps[1] + 1).all() and (sizes[:, 1] <= kp_steps[1] + 1).all()
    if revisit == "never" and dead_end == "drop": assert (sizes[:, 0] > topic_steps[0]).all() and (sizes[:, 1] > kp_steps[0]).all()
    if len(more):       # the walk that found a composition finds it again, alone
        w = int(more.walker[len(more) // 2])
        path = walk_reference(w % len(graph.topics), int(walker_seeds(seed, [w])[0]), legs_of(graph, WalkRules(**rules)), revisit)
        t, k = path[:1 + topic_steps[1]], path[1 + topic_steps[1]:]
        assert more[len(more) // 2] == (tuple(sorted({graph.topics[x] for x in t if x >= 0})), tuple(sorted({graph.knowledge_points[x] for x in k if x >= 0})))

SMALL = ConceptGraph.build(synthetic_records(300, 25, 90, seed=1))

def reachable(graph):
    "All compositions that a walk by the default rules can make, by sets of (labels so far, place)."
    near = {k: [e.row(i)[0].tolist() or [i] * (k != "topic-kp") for i in range(e.rows)] for k, e in graph.edges.items()}
    def walks(first, kind, fewest, most):
        states, out = {(frozenset([first]), first)}, set()
        for i in range(most + 1):
            out |= states if i >= fewest else set()
            states = {(s | {v}, v) for s, u in states for v in near[kind][u]}
        return out
    topics = {}
    for t in range(len(graph.topics)):
        for s, u in walks(t, "topic-topic", 1, 2):
            for k in near["topic-kp"][u]: topics.setdefault(k, set()).add(s)
    found = {(s, p) for k in topics for p in {p for p, _ in walks(k, "kp-kp", 0, 4)} for s in topics[k]}
    return {(tuple(sorted(graph.topics[x] for x in s)), tuple(sorted(graph.knowledge_points[x] for x in p))) for s, p in found}

@pytest.mark.parametrize("size", [(3, 2, 3), (8, 3, 5), (15, 4, 6), (30, 4, 7), (40, 6, 8)])
def test_small_graphs_yield_nearly_all_that_can_be_reached(size):
    graph = ConceptGraph.build(synthetic_records(*size, seed=7), 1)
    all_of_them = reachable(graph)
    found = graph.sample(10**6, partial=True)
    assert set(found) <= all_of_them and len(found) >= 0.985 * len(all_of_them), (len(found), len(all_of_them))
    n = len(found) * 19 // 20
    assert graph.sample(n) == found[:n]
    with pytest.raises(UserError, match=f"^{len(found):,} different compositions found in .*fewer than the 1,000,000"): graph.sample(10**6)

@pytest.mark.parametrize("bad", [None, "x", 1.5, True, float("nan"), [1]])
def test_bad_seeds_and_numbers_are_named(bad):
    for call in (SMALL.sample, SMALL.sample_arrays, SMALL.yield_curve, SMALL.uniform):
        with pytest.raises(UserError, match="^seed=.* must be a whole number$"): call(5, seed=bad)
    for call in (SMALL.shuffled, SMALL.restrict, SMALL.communities):
        with pytest.raises(UserError, match="^seed=.* must be a whole number$"): call(seed=bad)
    with pytest.raises(UserError, match="^min_yield="): SMALL.sample(5, min_yield=bad)
    if bad is not None:
        with pytest.raises(UserError, match="^max_epochs="): SMALL.sample(5, max_epochs=bad)
    if bad != 1.5:
        with pytest.raises(UserError, match="^alpha="): SMALL.sample(5, alpha="nan" if bad is True else bad)

def test_labels_are_cleaned_only_when_asked():
    composed, apart = unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café")
    records = [dict(id=i, topics=[x], knowledge_points=["k"]) for i, x in enumerate([composed, apart, " " + composed, composed + "  ", "CAFÉ.", "\u3000", ""])]
    kept = {name: ConceptGraph.build(records, 1, clean=name).topics for name in CLEAN}
    assert {k: len(v) for k, v in kept.items()} == {"none": 5, "strip": 3, "nfc": 2, "fold": 1}
    assert [r for r in ConceptGraph.build(records, 1).rejected if r.reason == "blank"] == [("topic", "", 1, "blank"), ("topic", "\u3000", 1, "blank")]
    assert ConceptGraph.build(records, 2, clean=lambda x: clean_fold(x).upper()).topics == (composed.upper(),)
    strange = [dict(id=0, topics=["\ud800", "x\u0000y", "a\nb"], knowledge_points=["🧮👩‍🔬", "\u202eabc"])]
    assert sorted(ConceptGraph.build(strange, 1).topics) == ["a\nb", "x\u0000y", "\ud800"] and len(ConceptGraph.build(strange, 1).sample(3)) == 3

def test_records_from_other_containers():
    records = synthetic_records(200, 10, 40)
    same = [dict(r, topics=np.array(r["topics"], object), knowledge_points=tuple(r["knowledge_points"]), extra=1) for r in records]
    assert ConceptGraph.build(iter(same)).sample(30) == ConceptGraph.build(records).sample(30)

@pytest.mark.parametrize("records, words", [
    ([], "no records"), ({}, "must be a list"), ("abc", "must be a list"),
    ([dict(id=1, topics=["a"], knowledge_points=["b"])], "min_count=2 of 1 record"),
    ([dict(id=1, topics=["a"], knowledge_points=[])] * 2, "no knowledge point in 2 records"),
    ([dict(id=1, topics=["a"], knowledge_points=[]), dict(id=2, topics=[], knowledge_points=["b"])] * 2, "no edge joins a topic to a knowledge point"),
    ([dict(id=1, topics=["a"], knowledge_points=["b"]), dict(id="q7", knowledge_points=["b"])], "record 2 (id 'q7') has no field 'topics'"),
    ([dict(id="q7", topics="a", knowledge_points=["b"])], "record 1 (id 'q7'): topics is 'a', not a list"),
    ([dict(id="q7", topics=["a"], knowledge_points=None)], "record 1 (id 'q7'): knowledge_points is None"),
    ([dict(id="q7", topics=["a", 3], knowledge_points=[])], "record 1 (id 'q7'): topics holds 3"),
    ([["a"]], "record 1 is of type list"), ([dict(topics=[], knowledge_points=[])], "record 1 has no field 'id'")])
def test_bad_records_are_one_line(records, words):
    with pytest.raises(UserError) as e: ConceptGraph.build(records)
    assert words in str(e.value) and "\n" not in str(e.value)

def test_a_graph_that_cannot_yield_says_so():
    one = ConceptGraph.build([dict(id=1, topics=["a"], knowledge_points=["a"])], min_count=1)
    assert one.sample(1) == [(("a",), ("a",))] and one.sample(5, partial=True) == one.sample(1)
    with pytest.raises(UserError, match="^1 different compositions found in .* epochs, fewer than the 2 .*; in the last .* epochs under 0.1 % of the walks gave a new one"): one.sample(2)
    with pytest.raises(UserError, match="^0 different"): one.sample(1, dead_end="drop")
    assert len(SMALL.sample(10**6, partial=True, max_epochs=3)) <= 3 * len(SMALL.topics)
    lone = ConceptGraph.build([dict(id=i, topics=["a", "b"] if i < 2 else ["a"], knowledge_points=["x"] if i > 1 else []) for i in range(4)])
    assert lone.edges["topic-kp"].degree.tolist() == [1, 0] and lone.sample(1) == [(("a", "b"), ("x",))]      # "b" has no knowledge point: walks that end there are not used
