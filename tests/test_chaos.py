"A short version of tests/chaos.py: three kills of a small pipeline, and every other fault once. The long one (50 kills of a paper, servers of engines killed) is run by hand; its record is a page of the reports."
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

SHORT = [f for f in chaos.INJECTIONS if f != "teacher_gone"]     # it waits for its patience to end; dead_server is the same with less of it

@pytest.mark.parametrize("fault", SHORT)
def test_fault_is_noticed_and_costs_nothing_finished(fault, where):
    if fault in ("storm", "hanging", "dead_server", "teacher_killed", "teacher_hangs"): pytest.importorskip("openai")
    r = chaos.inject(fault, where)
    assert r["found"] and r["same_bytes"] and not r["lost"], r

def test_record_merges_into_the_page(where, tmp_path):
    from mathrepro.faults import fault_row, load_faults, merge_faults
    from mathrepro.site import build_site
    record, path = {"injections": [chaos.inject("truncated_finished", where / "again")]}, tmp_path / "faults.json"
    for _ in range(2): chaos.into(path, record, ["--injections", "--into", str(path)])
    merge_faults(path, [fault_row("SIGKILL", "a Ray worker", 2, 2, redone_s=1.5, command="pytest tests/test_cluster.py")])
    assert [r["injected"] for r in load_faults(path)["rows"]] == [1, 2] and load_faults(path)["rows"][0]["command"] == "python tests/chaos.py --injections"
    index, page = build_site(home=tmp_path / "none", out=tmp_path).read_text(), (tmp_path / "faults.html").read_text()
    assert "3 faults were injected, 2 of them kills; after 3 of them" in index and "a Ray worker" in page and "<script" not in page
