"""The registry against real files, and what a reader of bad data sees. Real files are read from $MATHREPRO_DATA; without it those tests are skipped, visibly."""
import hashlib, json, os, subprocess, sys
from pathlib import Path
import pytest
from mathrepro import datasets, records
from mathrepro.config import UserError

real = pytest.mark.skipif(not os.environ.get("MATHREPRO_DATA"), reason="MATHREPRO_DATA is not set: real benchmark files not at hand")

def need(name, split=None):
    if not datasets.locate(name, split): pytest.skip(f"{name} {split or ''} is not in MATHREPRO_DATA")

@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MATHREPRO_DATA", str(tmp_path)); monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for k in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"): monkeypatch.delenv(k, raising=False)
    return tmp_path

# --- the real files

@real
@pytest.mark.parametrize("name,split,rows", [("gsm8k", "train", 7473), ("gsm8k", "test", 1319), ("math", "train", 7474), ("math", "test", 5000),
                                             ("mgsm", "en", 250), ("mgsm", "de", 250), ("mgsm", "sw", 250)])
def test_published_rows_hashes_and_ids(name, split, rows):
    need(name, split)
    problems = datasets.load(name, split)          # strict: rows and published hash
    assert len(problems) == rows and len({p.id for p in problems}) == rows
    repeats = sum(p.id != records.problem_id(p.problem) for p in problems)     # equal but for white space; their ids end in -2
    assert repeats == (1 if (name, split) == ("math", "train") else 0)
    assert all(p.id[:16] == records.problem_id(p.problem) and p.source == name and p.split == split for p in problems)
    assert sum(not p.answer for p in problems) == (4 if (name, split) == ("math", "train") else 0)

@real
def test_gsm8k_gold():
    need("gsm8k", "train")
    train, test = datasets.load("gsm8k", "train"), datasets.load("gsm8k", "test")
    for p in train + test: assert float(p.answer) == float(p.solution.split("####")[1].replace(",", "")) and "," not in p.answer
    assert sum("," in p.solution.split("####")[1] for p in train) == 79        # comma answers counted in the source
    assert sum(p.answer.startswith("-") for p in train) == 3
    assert not {p.id for p in train} & {p.id for p in test}

@real
def test_math_gold_is_last_boxed():
    need("math", "test")
    problems = datasets.load("math", "test")
    assert all(p.answer in p.solution for p in problems) and all(p.answer.count("{") == p.answer.count("}") for p in problems)
    assert problems[0].answer == "2" and json.loads(problems[0].meta)["level"] == "Level 3"

@real
def test_mgsm_is_gsm8k_translated():
    need("mgsm", "en"); need("gsm8k", "test")
    gold = [p.answer for p in datasets.load("gsm8k", "test", n=250)]
    for lang in ("en", "de", "sw"): assert [p.answer for p in datasets.load("mgsm", lang)] == gold

@real
def test_example_solutions_are_the_published_ones():
    need("gsm8k_samples"); need("gsm8k", "test")
    s = datasets.load_samples("gsm8k_samples")
    assert len(s.samples) == len(s.labels) == 5276
    assert [sum(s.labels[j::4]) for j in range(4)] == [286, 515, 458, 742]     # is_correct totals of the source
    test = datasets.load("gsm8k", "test")
    assert [(p.id, p.answer) for p in s.problems] == [(p.id, p.answer) for p in test]
    assert [x.problem_id for x in s.samples[::4]] == [p.id for p in test] and [x.index for x in s.samples[:4]] == [0, 1, 2, 3]
    assert sum("\n#### " in x.text for x in s.samples) >= 5265

@real
def test_tora_outputs():
    need("tora")
    t = datasets.load_samples("tora")
    assert len(t.samples) == len(t.predicted) == 1319 and all("```output" in x.text for x in t.samples[:5])
    assert sum(a == p.answer for a, p in zip(t.predicted, t.problems)) == 1102   # exact strings only

@real
def test_everything_at_hand_verifies():
    report = datasets.verify()
    if not report: pytest.skip("no known file in MATHREPRO_DATA")
    assert [r["problem"] for r in report if not r["ok"]] == []

# --- what goes wrong

def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)

def test_missing_everywhere_names_both_places_and_no_network(root):
    with pytest.raises(UserError) as e: datasets.load("gsm8k", "train")
    text = one_line(e)
    assert str(root) in text and "gsm8k/train.jsonl" in text and "openai/gsm8k" in text and "HF_HUB_OFFLINE" in text

def test_unset_root_is_said(root, monkeypatch):
    monkeypatch.delenv("MATHREPRO_DATA")
    with pytest.raises(UserError) as e: datasets.load("math", "test")
    assert "MATHREPRO_DATA is not set" in one_line(e) and "math/test.jsonl" in str(e.value)

def test_offline_opens_no_socket(root):
    code = ("import socket\ndef no(*a, **k): raise SystemExit('network touched')\nsocket.socket.connect = no; socket.getaddrinfo = no\n"
            "from mathrepro import datasets\nfrom mathrepro.config import UserError\ndatasets.status()\n"
            "try: datasets.load('svamp')\nexcept UserError as e: print('refused', e)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0 and done.stdout.startswith("refused"), done.stdout + done.stderr

def test_malformed_line_is_named(root):
    f = root / "gsm8k" / "test.jsonl"; f.parent.mkdir()
    good = json.dumps({"question": "1+1?", "answer": "#### 2"})
    f.write_text(good + "\n" + good[:-5] + "\n")
    with pytest.raises(UserError) as e: datasets.load("gsm8k", "test", strict=False)
    assert f"{f}, line 2" in one_line(e)
    f.write_text(good + '\n{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(UserError) as e: datasets.load("gsm8k", "test", strict=False)
    assert "row 2" in one_line(e) and "####" in str(e.value)

def test_changed_file_is_refused_or_warned_about(root):
    f = root / "gsm8k" / "test.jsonl"; f.parent.mkdir()
    f.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(1319)))
    with pytest.raises(UserError, match="sha256"): datasets.load("gsm8k", "test")
    with pytest.warns(UserWarning, match="sha256"): assert len(datasets.load("gsm8k", "test", strict=False)) == 1319
    assert hashlib.sha256(f.read_bytes()).hexdigest() == datasets.file_hash(f)

def test_own_parquet_and_corrupt_shard(root):
    rows = [records.Problem(records.problem_id(f"q{i}"), f"q{i}", "", str(i), "svamp", "test") for i in range(1000)]
    shard = records.write_table(root / "svamp" / "test.parquet", rows)
    assert datasets.load("svamp") == rows and datasets.status()
    assert [r["where"] for r in datasets.status() if r["found"] == "local"] == [str(shard)]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError) as e: datasets.load("svamp")
    assert str(shard) in one_line(e) and "delete it" in str(e.value)

def test_folder_of_shards_names_the_damaged_one(root):
    rows = [records.Problem(f"{i:04d}", f"q{i}", "", str(i), "svamp", "test") for i in range(1000)]
    folder = root / "svamp" / "test"
    for k in range(4): records.write_table(folder / f"part-{k}.parquet", rows[k * 250:(k + 1) * 250])
    assert datasets.load("svamp") == rows
    (folder / "part-2.parquet").write_bytes(b"")
    with pytest.raises(UserError) as e: datasets.load("svamp")
    assert "part-2.parquet" in one_line(e) and "part-1" not in str(e.value)

def test_world_is_a_data_set_and_seeded():
    a = datasets.load("world", "train", n=50, seed=5)
    assert a == datasets.load("world", "train", n=50, seed=5) and all(isinstance(p, records.Problem) for p in a)
    assert not {p.problem for p in a} & {p.problem for p in datasets.load("world", "test", n=50, seed=5)}

def test_heavy_libraries_stay_out():
    code = "import sys; from mathrepro import datasets; datasets.status(); print([m for m in ('torch', 'pandas', 'datasets', 'pyarrow', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

# --- the hub, with its library answering from memory (the real one needs a network)

HUB = {"openai/gsm8k": [{"question": "1+1?", "answer": "so\n#### 2"}], "EleutherAI/hendrycks_math": [{"problem": "p", "solution": "a \\boxed{1} then \\boxed{\\frac{1}{2}}", "level": "Level 1", "type": "Algebra"}],
       "ChilleD/SVAMP": [{"ID": "1", "Body": "Ann has 2 pens", "Question": "How many pens?", "Answer": "2.0", "question_concat": "no"}],
       "EleutherAI/asdiv": [{"body": "Ann has 9 apples.", "question": "How many?", "answer": "9 (apples)", "formula": "9=9"}],
       "juletxara/mgsm": [{"question": "q", "answer": None, "answer_number": 1234, "equation_solution": None}],
       "HuggingFaceH4/MATH-500": [{"problem": "p", "solution": "s", "answer": "3", "subject": "Algebra", "level": 2, "unique_id": "u"}]}

@pytest.mark.parametrize("name,split,calls,answer", [("gsm8k", "train", [("openai/gsm8k", "main", "train")], "2"),
    ("math", "test", [("EleutherAI/hendrycks_math", c, "test") for c in datasets.MATH_SUBJECTS.split(",")], "\\frac{1}{2}"),
    ("svamp", "test", [("ChilleD/SVAMP", None, "train+test")], "2"), ("asdiv", "test", [("EleutherAI/asdiv", "asdiv", "validation")], "9"),
    ("mgsm", "sw", [("juletxara/mgsm", "sw", "test")], "1234"), ("math500", "test", [("HuggingFaceH4/MATH-500", None, "test")], "3")])
def test_hub_is_asked_when_nothing_is_local(root, monkeypatch, name, split, calls, answer):
    hf = pytest.importorskip("datasets"); asked = []
    monkeypatch.setattr(hf, "load_dataset", lambda repository, configuration, split: asked.append((repository, configuration, split)) or HUB[repository])
    monkeypatch.delenv("HF_HUB_OFFLINE"); monkeypatch.setattr(datasets, "hub_name_known", lambda: True)
    with pytest.warns(UserWarning, match="published number"): problems = datasets.load(name, split, strict=False)
    assert asked == calls and problems[0].answer == answer and problems[0].source == name
    with pytest.raises(UserError, match="published number"): datasets.load(name, split)

def test_hub_failure_is_one_line(root, monkeypatch):
    hf = pytest.importorskip("datasets")
    def fail(*a, **k): raise ConnectionError("a\nlong\nstory " + "x" * 999)
    monkeypatch.setattr(hf, "load_dataset", fail); monkeypatch.delenv("HF_HUB_OFFLINE"); monkeypatch.setattr(datasets, "hub_name_known", lambda: True)
    with pytest.raises(UserError) as e: datasets.load("gsm8k", "test")
    assert "ConnectionError" in one_line(e) and str(root) in str(e.value)
