"A short version of tests/chaos.py: three kills of a small pipeline, and every other fault once. The long one (50 kills of a paper's smoke profile) is run by hand."
import sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import chaos

def test_three_kills_same_bytes(tmp_path):
    r = chaos.chaos(chaos.Pipeline("toys"), 3, 1, tmp_path)
    s = r["summary"]
    assert s["kills"] == s["recovered"] == 3 and all(x["same_bytes"] and not x["failed"] and not x["left_in_work"] for x in r["rounds"]), r
    assert s["lost_stages"] == s["lost_shards"] == s["orphans"] == 0 and s["in_a_stage"] >= 1, r

@pytest.fixture(scope="module")
def where(tmp_path_factory): return tmp_path_factory.mktemp("faults")

@pytest.mark.parametrize("fault", chaos.INJECTIONS)
def test_fault_is_noticed_and_costs_nothing_finished(fault, where):
    if fault in ("storm", "hanging", "dead_server"): pytest.importorskip("openai")
    r = chaos.inject(fault, where)
    assert r["found"] and r["same_bytes"] and not r["lost"], r
