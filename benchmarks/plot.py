"""The picture of `docs/benchmarks.md`: four of its columns, ours beside the peers."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from report import OURS, SECTIONS

PANELS = [
    ("query", "questions/s, 16", "questions per second, 16 clients"),
    ("query", "p95 ms, 16", "95 % answered within ms, 16 clients"),
    ("ingest", "documents/s", "documents ingested per second"),
    ("start", "seconds to the first answer", "seconds from start to first answer"),
]

raw = Path(sys.argv[1])
results = json.loads(raw.read_text())
panels = [panel for panel in PANELS if panel[0] in results]
figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 2.6), layout="constrained", squeeze=False)
for axis, (verb, key, title) in zip(axes[0], panels, strict=True):
    rows = {
        name: cells[key]
        for name, cells in SECTIONS[verb][0](results[verb]).items()
        if key in cells and name in results[verb]["rounds"]
    }
    names = list(reversed(rows))
    bars = axis.barh(names, [rows[name] for name in names], color=["#c2410c" if name == OURS else "#a8a29e" for name in names])
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
plt.rcParams["svg.hashsalt"] = "footnote"
figure.savefig(raw.with_suffix(".svg"), metadata={"Date": None})
