"A small paper notebook, executed, that holds one of everything a report can show."
import nbformat as nf
from nbclient import NotebookClient

CELLS = [
("md", """# Scaling of a demonstration: does $\\mathrm{RFT}$ beat SFT?

> A made-up paper for the report's own tests; nothing here was measured.

The paper samples $k$ solutions per question, keeps those that are right, and fine-tunes again. Money such as \\$5 is not a formula.

## What the paper did

Sampling at $T=0.7$ and keeping distinct equation lists gives, for $n$ samples of which $c$ are right,

$$\\hat p_k = 1-\\frac{\\binom{n-c}{k}}{\\binom{n}{k}}$$

and a long formula that a phone cannot hold in one line:

\\begin{equation}
\\mathcal L(\\theta)=-\\sum_{i=1}^{N}\\sum_{t=1}^{T_i} m_{i,t}\\,\\log p_\\theta\\left(x_{i,t}\\mid x_{i,<t}\\right)+\\lambda\\left\\lVert\\theta-\\theta_0\\right\\rVert_2^2+\\mathbb{E}_{q}\\left[\\sum_j \\log\\frac{q(z_j)}{p(z_j)}\\right]
\\end{equation}

### In numbers

| model | parameters | loss |
|:--|--:|--:|
| small | 0.9M | 1.81 |
| large | 5.0M | 1.52 |

1. A list item with `code`,
2. and one with a [link](https://example.org/paper).
"""),
("hide-input", """from mathrepro.report import *
plot_style()
show_scope("cpu", "world teacher (declared error rates; no language model)", model="tiny LLaMA, 0.9M parameters", paper="arXiv:0000.00000")"""),
("parameters", "k = 12\nseeds = 3"),
("md", "## Evidence\n\nThe measured runs, beside what the paper printed.\n\n### Accuracy over k"),
("", """# draw accuracy over the number of samples
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
k = [1, 3, 6, 12, 25, 50]
ax.errorbar(k, [.31, .34, .37, .39, .405, .41], yerr=.02, label="RFT")
ax.errorbar(k, [.30, .31, .32, .325, .33, .33], yerr=.02, label="SFT, step-matched")
ax.plot(k, [.30, .32, .33, .33, .34, .34], label="SFT, row-matched")
ax.set_xscale("log"); ax.set(xlabel="samples per question, k", ylabel="accuracy on 2,000 test problems"); ax.legend()
show_figure(fig, "Accuracy over the number of samples per question; bars are 95 % intervals over 3 seeds.", name="k-sweep", alt="RFT rises from 31 % to 41 %, both controls stay below 34 %.")"""),
("", """show_table([{"setting": s, "7B": a, "13B": b, "33B": c, "tiny": m} for s, a, b, c, m in [("SFT", 35.9, 43.0, 54.6, (31.2, 29.4, 33.0)), ("RFT k=12", 41.6, 48.0, None, (39.1, 37.2, 41.0)), ("RFT k=100", 41.7, 49.1, 54.5, None)]],
           "Accuracy in percent", reported=["7B", "13B", "33B"], measured="tiny", name="main-table", note="A dash marks what was not reported or not run.")"""),
("", """show_table([{"setting": f"setting number {i}", **{f"model {j}": 30 + i + j / 10 for j in range(14)}} for i in range(3)], "A wide table, as Table 5 of many a paper: fourteen models side by side, which no phone can show at once",
           reported=[f"model {j}" for j in range(7)], measured=[f"model {j}" for j in range(7, 14)], name="wide-table")"""),
("", """import pandas as pd
pd.DataFrame({f"column_{i}": [1.0, 2.0] for i in range(20)})"""),
("", """import sys
print("a very long line of printed text " * 12)
print("progress 100%", file=sys.stderr)"""),
("md", "## Verdicts"),
("hide-input", """emit("accuracy", {"estimate": 0.391, "low": 0.372, "high": 0.41})
show_claims([
  dict(id="rft-1", tier="B", statement="Rejection-sampling fine-tuning beats fine-tuning on the original data.", where="Table 1", reported="35.9 → 41.7", measured=(7.9, 5.2, 10.6), verdict="supported", explanation="Paired difference over 3 seeds × 2,000 problems; Holm-corrected p = 0.0004.", rule="lower end of the 95 % interval of the paired difference above 0", scope="synthetic world", anchor="k-sweep", command="mathrepro run demo --profile cpu"),
  dict(id="rft-2", tier="B", statement="Distinct paths matter, not the number of rows: de-duplicated data is better at equal rows.", where="Section 4.1", reported="41.2 vs 49.3", measured=(-2.1, -3.4, -0.8), verdict="contradicted", explanation="At equal rows the duplicated arm is better here.", scope="synthetic world", anchor="main-table"),
  dict(id="rft-3", tier="B", statement="Better models gain less.", where="Section 3.3", reported="+5.8 vs +4.8", measured=(-0.4, -2.9, 2.1), verdict="inconclusive", explanation="The smallest difference that 3 seeds can detect is 3.1 points; 12 seeds would settle it.", scope="synthetic world", anchor="accuracy-over-k"),
  dict(id="rft-4", tier="C", statement="It holds for 33B and 70B models.", where="Table 5", reported={"33B": 54.5, "70B": 64.8}, measured=None, verdict="not run", explanation="Planned cost: 1,200 A100 hours.", scope="paper scale", command="mathrepro run demo --profile paper")])"""),
("md", "## Cost and provenance"),
("hide-input", """show_provenance([dict(name="base", wall_s=61, tokens_in=2_000_000, tokens_out=0, flops=1.1e13, peak_mib=800, cached=True), *[dict(name=f"sft/s{i}", wall_s=12.5, tokens_in=400_000, tokens_out=0, flops=2e12, peak_mib=900, cached=False) for i in range(3)],
  *[dict(name=f"sample/s{i}", wall_s=33.1, tokens_in=90_000, tokens_out=700_000, flops=4e12, peak_mib=1100, cached=False) for i in range(3)]], seeds=[0, 1, 2], date="2026-01-02T03:04")"""),
]

def build(path=None, execute=True):
    "The demonstration notebook; written to `path` when one is given."
    nb = nf.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    for i, (tag, source) in enumerate(CELLS):
        cell = nf.v4.new_markdown_cell(source) if tag == "md" else nf.v4.new_code_cell(source, metadata={"tags": [tag]} if tag else {})
        cell["id"] = f"cell-{i}"
        nb.cells.append(cell)
    if execute: NotebookClient(nb, timeout=180, kernel_name="python3", record_timing=False).execute()
    if path: nf.write(nb, path)
    return nb
