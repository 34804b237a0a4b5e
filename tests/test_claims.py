"From samples to the ledger on disk, and the claims files that ship."
import json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from mathrepro.claims import Evidence, decide, load_claims, write_ledger
from mathrepro.config import UserError
from mathrepro.evaluate import score_matrix, score_samples
from mathrepro.records import Problem, Sample, Score, read_rows, write_table
from mathrepro.stats import paired_difference

FILES = sorted((Path(__file__).parents[1] / "params").glob("*/claims.yaml"))
TEXT = """
paper: demo
claims:
  - {id: better, statement: B beats A, where: Table 1, tier: B, kind: difference, direction: greater, sesoi: 5}
  - {id: missing, statement: nobody looked, where: Table 2, tier: C, kind: not run}
"""

def scored(seed, share, folder):
    "One run's scores through Parquet: 300 problems, answers right with probability `share`."
    rng = np.random.default_rng(seed)
    problems = [Problem(f"p{i}", "", "", "7", "demo", "test") for i in range(300)]
    texts = np.where(rng.random(300) < share, "#### 7", "#### 8")
    samples = [Sample(p.id, 0, "", str(t), seed, "m", 0.0, "stop", 1) for p, t in zip(problems, texts)]
    write_table(folder / f"{seed}.parquet", score_samples(samples, problems, "hash"))
    return read_rows(folder / f"{seed}.parquet", Score)

def test_samples_to_ledger(tmp_path):
    (tmp_path / "claims.yaml").write_text(TEXT)
    a, ids = score_matrix([scored(s, .4, tmp_path) for s in range(3)])
    b, _ = score_matrix([scored(s, .7, tmp_path) for s in range(10, 13)])
    verdicts = decide(load_claims(tmp_path / "claims.yaml"), [Evidence("better", paired_difference(b, a))])
    assert [v.verdict for v in verdicts] == ["supported", "not run"] and a.shape == (3, 300) and ids[0] == "p0"
    first = [p.read_bytes() for p in write_ledger(tmp_path, verdicts)]
    assert first == [p.read_bytes() for p in write_ledger(tmp_path, verdicts)]
    assert json.loads(first[0])["tally"] == {"supported": 1, "contradicted": 0, "inconclusive": 0, "not run": 1}
    assert list(pd.read_parquet(tmp_path / "claims.parquet")["claim"]) == ["better", "missing"]

def test_bad_claims_file_is_one_line(tmp_path):
    (tmp_path / "claims.yaml").write_text(TEXT.replace("sesoi: 5", "sesoi: five"))
    with pytest.raises(UserError, match=r"claims\.yaml, line 4: claim better: sesoi must be a number above 0"): load_claims(tmp_path / "claims.yaml")

@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_shipped_claims_load(path):
    claims = load_claims(path)
    assert claims and all(c.paper == path.parent.name for c in claims)
    assert all(v.verdict == "not run" for v in decide(claims, []))
