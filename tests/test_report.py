"Pages and index: structure, byte-stability, self-containment, bad input, and how a real browser lays them out."
import copy, json, os, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import browser, demo_report
from mathrepro.config import UserError
from mathrepro.page import export_page, inspect_page
from mathrepro.report import read_results
from mathrepro.site import build_site, load_reports

@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "The demonstration notebook, executed once by a real kernel."
    path = tmp_path_factory.mktemp("demo") / "demo.ipynb"
    env = dict(MATHREPRO_NOTEBOOK="nbs/papers/demo.ipynb", MATHREPRO_PARAMS="params/demo/cpu.yaml", OMP_NUM_THREADS="1")
    old = {k: os.environ.get(k) for k in env}
    os.environ.update(env)
    try: demo_report.build(path)
    finally:
        for k, v in old.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})
    return path

@pytest.fixture(scope="module")
def page(executed): return export_page(executed)

@pytest.fixture
def home(executed, tmp_path):
    "Runs of two papers, as the runner leaves them."
    for paper, profile, overrides in [("demo", "smoke", []), ("demo", "cpu", []), ("demo", "cpu", ["k=3"]), ("other", "cpu", [])]:
        nb = json.loads(executed.read_text())
        nb["metadata"]["mathrepro"] = dict(paper=paper, profile=profile, overrides=overrides, notebook=f"nbs/papers/{paper}.ipynb", started="2026-01-02T03:04:05Z", parameters=dict(k=12))
        path = tmp_path / "runs" / paper / f"{','.join([profile, *overrides])}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(nb))
    (tmp_path / "runs" / "demo" / "gpu.failed.ipynb").write_text("{}")
    return tmp_path / "runs"

class Tree(HTMLParser):
    "Tags must close in order; collects ids, and text by tag."
    VOID = {"meta", "img", "br", "hr", "input", "link", "path", "use", "rect", "line", "circle"}
    def __init__(self, html):
        super().__init__()
        self.stack, self.ids, self.wrong = [], [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID: self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): self.ids += [v for k, v in attrs if k == "id"]
    def handle_endtag(self, tag):
        if tag in self.VOID: return
        if not self.stack or self.stack.pop() != tag: self.wrong.append(tag)

def test_page_is_self_contained_and_well_formed(page):
    seen = inspect_page(page)
    assert seen.found == [] and "<script" not in page.lower() and "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="http[^"]*"', page) == ['href="https://example.org/paper"']   # the one link of the prose
    tree = Tree(page)
    assert tree.wrong == [] and tree.stack == []
    assert len(tree.ids) == len(set(tree.ids)), sorted(i for i in tree.ids if tree.ids.count(i) > 1)[:5]
    assert set(seen.links) <= set(seen.ids)

def test_page_says_what_it_is_before_anything_else(page):
    text = re.sub(r"<[^>]+>", "", page[page.index('<main'):]).split()
    assert " ".join(text[:8]).startswith("Mechanism check in the synthetic world; teacher/engine: world")
    assert page.index('id="claims"') < page.index("What the paper did</h2>") < page.index('id="k-sweep"')
    assert '<html lang="en">' in page and "<title>Scaling of a demonstration: does \\mathrm{RFT} beat SFT?</title>" in page
    assert "Run it again" not in page     # no runner recorded a command in this notebook

def test_everything_has_a_caption_a_source_and_words(page):
    figures = re.findall(r'<figure class="mr-figure".*?</figure>', page, re.S)
    assert figures and all("<figcaption>" in f and 'role="img" aria-label=' in f and "Made by" in f and "nbs/papers/demo.ipynb" in f and "params/demo/cpu.yaml" in f for f in figures)
    tables = re.findall(r'<figure class="mr-table".*?</figure>', page, re.S)
    assert len(tables) >= 3 and all("<caption>" in t and 'scope="col"' in t for t in tables)
    for symbol, word in (("✓", "supported"), ("✗", "contradicted"), ("?", "inconclusive"), ("○", "not run")):
        assert f'<span aria-hidden="true">{symbol}</span> {word}</span>' in page
    main = re.search(r'id="main-table".*?</figure>', page, re.S)[0]
    assert "paper-reported" in main and "measured here" in main and 'class="n mr-reported">35.9' in main and 'class="n mr-measured">31.2' in main
    assert "$" not in re.sub(r"<[^>]+>", "", page[page.index("<main"):]).replace("$5", "")      # no raw TeX left

def test_contents_are_numbered_and_link(page):
    toc = re.search(r'<div class="wide">.*?</div>', page, re.S)[0]
    assert re.findall(r'href="#([^"]+)"><span class="mr-num">([^<]*)<', toc) == [("claims", ""), ("what-the-paper-did", "1"), ("in-numbers", "1.1"), ("evidence", "2"), ("accuracy-over-k", "2.1"), ("verdicts", "3"), ("cost-and-provenance", "4")]

def test_same_notebook_same_bytes(executed, page):
    assert export_page(executed) == page
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", f"from mathrepro.page import export_page; import sys; sys.stdout.write(export_page({str(executed)!r}))"], env=env, capture_output=True, text=True)
    assert other.stdout == page, other.stderr[-500:]

def test_results_read_back(executed):
    r = read_results(executed)
    assert r["accuracy"] == {"estimate": 0.391, "low": 0.372, "high": 0.41} and [c["verdict"] for c in r["claims"]] == ["supported", "contradicted", "inconclusive", "not run"]
    assert r["main-table"]["sources"] == {"setting": "", "7B": "reported", "13B": "reported", "33B": "reported", "tiny": "measured"} and r["main-table"]["rows"][1]["33B"] is None
    first = next(d for d in r["k-sweep"]["data"] if d["series"] == "RFT")
    assert (first["x"], first["y"], first["low"], first["high"]) == (1, .31, .29, .33)
    assert r["provenance"]["totals"]["stages"] == 7

def notebook(tmp_path, *cells):
    nb = dict(cells=[dict(cell_type="markdown", id=f"c{i}", metadata={}, source=c) if isinstance(c, str) else dict(cell_type="code", id=f"c{i}", metadata={}, source="", execution_count=None, outputs=[c]) for i, c in enumerate(cells)],
              metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / "x.ipynb").write_text(json.dumps(nb))
    return tmp_path / "x.ipynb"

def html_output(text): return dict(output_type="display_data", metadata={}, data={"text/html": text})

def test_command_line_and_bad_tex(tmp_path):
    run = lambda p: subprocess.run([sys.executable, "-m", "nbconvert", "--to", "mathrepro", str(p)], capture_output=True, text=True)
    r = run(notebook(tmp_path, "# Good\n\n$x$"))
    assert r.returncode == 0 and "<h1>Good</h1>" in (tmp_path / "x.html").read_text(), r.stderr[-800:]
    r = run(notebook(tmp_path, "# Bad\n\n$\\frac{1}{$"))
    assert r.returncode != 0 and "bad TeX: \\frac{1}{" in r.stderr

def test_without_quickjax_the_tex_is_shown_as_code(tmp_path, monkeypatch):
    from mathrepro.page import math_svg
    math_svg.cache_clear()
    monkeypatch.setitem(sys.modules, "quickjax", None)
    try: assert '<code class="mr-tex">x^2</code>' in export_page(notebook(tmp_path, "# T\n\n$x^2$"))
    finally: math_svg.cache_clear()

@pytest.mark.parametrize("html", ["<script>1</script>", '<img src="https://example.org/x.png">', '<p onclick="x()">', '<iframe srcdoc=""></iframe>', '<style>@import "x.css"</style>',
                                  '<link rel="stylesheet" href="x.css">', '<a href="javascript:x()">x</a>', '<div style="background:url(http://example.org/a)">x</div>'])
def test_active_or_fetching_output_is_refused(tmp_path, html):
    with pytest.raises(UserError, match="not self-contained"): export_page(notebook(tmp_path, "# T", html_output(html)))

def test_hostile_text_stays_text(tmp_path):
    evil = dict(output_type="stream", name="stdout", text="<script>alert(1)</script> \x1b[31m<img src=x onerror=1>")
    page = export_page(notebook(tmp_path, "# T", evil))
    assert "&lt;script&gt;" in page and "<script" not in page

def test_a_failed_run_says_so(tmp_path):
    error = dict(output_type="error", ename="KeyError", evalue="'k'", traceback=[])
    assert "This run stopped with an error:" in export_page(notebook(tmp_path, "# T", error))

def test_link_to_nowhere_becomes_text(tmp_path):
    assert '<a href="#nowhere"' not in export_page(notebook(tmp_path, "# T\n\n[see](#nowhere)"))

def test_site(home, tmp_path):
    out, said = tmp_path / "reports", []
    index = build_site(home, out, say=said.append)
    files = sorted(p.name for p in out.iterdir())
    stems = ["demo-cpu", "demo-cpu-k-3", "demo-smoke", "other-cpu"]
    assert files == sorted(["claims.parquet", "index.html", *(f"{s}.{e}" for s in stems for e in ("html", "json"))]) and len(said) == 4
    html = index.read_text()
    assert inspect_page(html).found == [] and html.count("<b>1</b> contradicted") == 4 and html.count("<b>4</b> contradicted") == 1 and "mathrepro run demo --profile cpu -p k=3" in html
    assert [d["page"] for d in load_reports(out)] == ["demo-smoke.html", "demo-cpu.html", "demo-cpu-k-3.html", "other-cpu.html"]
    import pandas as pd
    ledger = pd.read_parquet(out / "claims.parquet")
    assert len(ledger) == 16 and ledger.verdict.value_counts()["supported"] == 4 and ledger.estimate[0] == 7.9
    nav = re.search(r'<nav class="trail".*?</nav>', (out / "demo-cpu.html").read_text(), re.S)[0]
    assert 'href="index.html"' in nav and 'href="demo-smoke.html"' in nav and 'href="demo-cpu-k-3.html"' in nav

def test_a_modified_checkout_is_marked_loudly(home, tmp_path):
    for p in home.glob("*/*.ipynb"):       # the tests themselves may run in a modified checkout
        clean = re.sub(r'("commit": ")[^"]*', r"\g<1>0123456789", p.read_text())
        p.write_text(clean.replace('"0123456789"', '"0123456789 (modified)"') if p.stem == "cpu" and p.parent.name == "demo" else clean)
    index = build_site(home, tmp_path / "reports").read_text()
    assert index.count("mr-unclean\">") == 2 and "1 of 4 reports was made from a modified checkout" in index
    assert "mr-unclean\">" in (tmp_path / "reports" / "demo-cpu.html").read_text() and "mr-unclean\">" not in (tmp_path / "reports" / "demo-smoke.html").read_text()

def test_index_answers_in_short_and_counts_sorts_of_evidence_apart(home, tmp_path):
    index = build_site(home, tmp_path / "reports").read_text()
    answer = re.search(r'<section id="demo">.*?</section>', index, re.S)[0]
    assert "Does it hold?" in answer and answer.index("Does it hold?") < answer.index("Profile cpu") and 'href="demo-cpu.html#claim-' in answer
    assert index.index("Tested by training") < index.index("Needs the paper's own scale") < index.index('<section id="demo">')

def test_building_twice_changes_nothing(home, tmp_path):
    out = tmp_path / "reports"
    build_site(home, out)
    before, said = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}, []
    build_site(home, out, say=said.append)
    assert said == [] and before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}

def test_reports_without_a_run_are_kept_and_relinked(home, tmp_path):
    out = tmp_path / "reports"
    build_site(home, out, notebooks=[home / "demo" / "cpu.ipynb"])
    assert "demo-smoke" not in (out / "demo-cpu.html").read_text()
    import shutil
    shutil.copytree(home / "demo", tmp_path / "later" / "demo")
    (tmp_path / "later" / "demo" / "cpu.ipynb").unlink()
    index = build_site(tmp_path / "later", out).read_text()
    assert 'href="demo-cpu.html"' in index and 'rel="prev" href="demo-smoke.html"' in (out / "demo-cpu.html").read_text()

def test_stale_reports_are_marked(home, tmp_path, monkeypatch):
    root = tmp_path / "repo"
    (root / "nbs" / "papers").mkdir(parents=True); (root / "params" / "demo").mkdir(parents=True); (root / "settings.ini").write_text("[DEFAULT]\n")
    nb = json.loads((home / "demo" / "cpu.ipynb").read_text())
    for c in nb["cells"]:
        if "parameters" in c["metadata"].get("tags", []): c["source"] = "k = 12"
    (home / "demo" / "cpu.ipynb").write_text(json.dumps(nb))
    source = copy.deepcopy(nb)
    (root / "nbs" / "papers" / "demo.ipynb").write_text(json.dumps(source))
    (root / "params" / "demo" / "cpu.yaml").write_text("k: 12\n")
    monkeypatch.chdir(root)
    build = lambda: build_site(home, tmp_path / "reports", notebooks=[home / "demo" / "cpu.ipynb"]).read_text()
    assert "older version" not in build()
    (root / "params" / "demo" / "cpu.yaml").write_text("k: 13\n")
    assert "parameters differ from the profile" in build()
    source["cells"][0]["source"] += "more"
    (root / "nbs" / "papers" / "demo.ipynb").write_text(json.dumps(source))
    assert "the notebook has changed" in build()

def test_bad_reports_folder(home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another reports folder"): build_site(home, tmp_path / "file")
    out = tmp_path / "reports"
    build_site(home, out)
    (out / "demo-cpu.json").write_text("{")
    with pytest.raises(UserError, match="demo-cpu.json is damaged"): build_site(home, out, notebooks=[])
    monkeypatch.setattr(os, "access", lambda *a: False)     # root may write anywhere, so ask the way the code asks
    with pytest.raises(UserError, match="read-only"): build_site(home, out)

def test_broken_notebooks(tmp_path):
    with pytest.raises(UserError, match="run it first"): export_page(tmp_path / "none.ipynb")
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(UserError, match="cut short"): build_site(out=tmp_path / "r", notebooks=[tmp_path / "cut.ipynb"])

# --- in a browser ---------------------------------------------------------------------------------------------------

CONTRAST = """(() => {
  const rgb = s => (s.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number), lum = c => { const f = c.slice(0, 3).map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2] };
  const back = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .5) return c } return [255, 255, 255] };
  const bad = []; const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) { const t = walk.currentNode, e = t.parentElement; if (!t.data.trim() || !e.getClientRects().length || e.closest('.skip')) continue;
    const s = getComputedStyle(e), fg = e.closest('svg') && s.fill !== 'none' ? rgb(s.fill) : rgb(s.color), a = lum(fg), b = lum(back(e)), r = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (r < 4.5) bad.push([t.data.trim().slice(0, 30), +r.toFixed(2)].join(' ')) }
  return bad })()"""

@pytest.fixture(scope="module")
def chrome():
    if not browser.find(): pytest.skip("no Chromium or Chrome here: page layout is not checked")
    with browser.Browser() as b: yield b

@pytest.fixture(scope="module")
def pages(executed, page, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    index = build_site(out=out, notebooks=[executed])
    return [index, next(out.glob("demo-*.html"))]

@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 360, 320])
def test_layout(chrome, pages, width, dark):
    for p in pages:
        chrome.get(p, width, 800, dark)
        assert chrome.js("document.documentElement.scrollWidth") <= width
        chrome.js("document.querySelectorAll('details').forEach(d => d.open = true)")      # and with everything unfolded
        assert chrome.js("document.documentElement.scrollWidth") <= width and chrome.js("innerWidth") == width
        assert chrome.messages == [] and [r for r in chrome.requests if not r.startswith(("file:", "data:"))] == []
        assert chrome.js(CONTRAST) == []
        ground = chrome.js("getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", ground)[0]) < 60) == dark

def test_wide_things_scroll_in_their_own_box(chrome, pages):
    chrome.get(pages[1], 360)
    assert chrome.js("(b => b.scrollWidth > b.clientWidth && getComputedStyle(b).overflowX == 'auto')(document.querySelector('#wide-table .mr-scroll'))")
    assert chrome.js("document.querySelector('.mr-claims thead').offsetHeight <= 1 && getComputedStyle(document.querySelector('.mr-claims td')).display == 'grid'")
    assert chrome.js("[...document.querySelectorAll('.mr-plot svg text')].every(t => t.getBoundingClientRect().height >= 7)")
    assert chrome.js("getComputedStyle(document.querySelector('.toc .wide')).display") == "none"

def test_cut_plots_and_tables_show_a_shadow(chrome, pages):
    chrome.get(pages[1], 390)
    layers = "getComputedStyle(document.querySelector('{}')).backgroundImage.split('linear-gradient').length - 1"
    assert chrome.js("(b => b.scrollWidth > b.clientWidth)(document.querySelector('#k-sweep .mr-plot'))")
    assert chrome.js(layers.format("#k-sweep .mr-plot")) == chrome.js(layers.format("#wide-table .mr-scroll")) == 4

def test_scope_stands_under_the_claim_and_the_paper_has_room(chrome, pages):
    chrome.get(pages[1], 1280)
    assert chrome.js("document.querySelectorAll('.mr-claims thead th').length") == 4 and chrome.js("!!document.querySelector('.mr-claims tbody th .mr-kind')")
    assert chrome.js("document.querySelector('.mr-claims td.mr-reported').offsetWidth") >= 180

def test_the_contrast_check_can_fail(chrome, pages):
    chrome.get(pages[0])
    chrome.js("document.querySelector('h1').style.color = '#999'")
    assert len(chrome.js(CONTRAST)) == 1

def test_plots_follow_the_theme(chrome, pages):
    colour = "getComputedStyle(document.querySelector('#k-sweep svg text')).fill"
    light, dark = [chrome.get(pages[1], 1280, dark=d).js(colour) for d in (False, True)]
    assert light == "rgb(28, 33, 38)" and dark == "rgb(230, 232, 234)"

def test_print(chrome, pages):
    chrome.get(pages[1], 800, media="print")
    assert chrome.js("['.toc', '.mr-code', '.trail'].every(s => getComputedStyle(document.querySelector(s)).display == 'none')")
