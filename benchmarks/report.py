"""The tables of `docs/benchmarks.md`, from what `bench.py` measured, and the ratios that are compared between runs."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

OURS = "Footnote"
WORSE = 0.85
"""A ratio below this share of its earlier value is reported: rounds differ by some per cent on any machine."""

Cells = dict[str, float]


def median(rounds: Iterable[dict], value: Callable[[dict], float]) -> float:
    return statistics.median(value(each) for each in rounds)


def embedding(found: dict) -> dict[str, Cells]:
    return {
        name: {
            "passages/s": found["passages"] / each["wall_s"],
            "CPU ms/passage": 1000 * each["cpu_s"] / found["passages"],
            "lowest cosine": each["cosine_min"],
            "memory MB": each["rss_mb"],
            "foreign cores": each["foreign_cores"],
        }
        for name, each in found["results"].items()
    }


def ingest(found: dict) -> dict[str, Cells]:
    rows = {**found["rounds"], "our embedder alone": found["bound"]}
    return {
        name: {
            "documents/s": found["documents"] / median(rounds, lambda each: each["seconds"]),
            "CPU ms/document": 1000 * median(rounds, lambda each: each["cpu_seconds"]) / found["documents"],
            **({"peak memory MB": median(rounds, lambda each: each["peak_mb"])} if "peak_mb" in rounds[0] else {}),
            "foreign cores": median(rounds, lambda each: each["foreign_cores"]),
        }
        for name, rounds in rows.items()
    }


def query(found: dict) -> dict[str, Cells]:
    rows: dict[str, Cells] = {}
    for name, rounds in found["rounds"].items():
        cells = rows[name] = {}
        for clients in (key for key in rounds[0] if key.isdigit()):
            loads = [each[clients] for each in rounds]
            cells[f"questions/s, {clients}"] = median(loads, lambda each: each["per_second"])
            cells[f"p50 ms, {clients}"] = median(loads, lambda each: each["p50_ms"])
            cells[f"p95 ms, {clients}"] = median(loads, lambda each: each["p95_ms"])
            cells[f"errors, {clients}"] = sum(each["failed"] for each in loads)
        cells["serving process, peak MB"] = median(rounds, lambda each: each["peak_mb"])
        cells["all processes, peak MB"] = median(rounds, lambda each: each["family_peak_mb"])
        cells["foreign cores, most"] = max(each[key]["foreign_cores"] for each in rounds for key in each if key.isdigit())
    return rows


def start(found: dict) -> dict[str, Cells]:
    return {
        name: {
            "seconds to the first answer": median(rounds, lambda each: each["seconds"]),
            "CPU s": median(rounds, lambda each: each["cpu_seconds"]),
            "foreign cores": median(rounds, lambda each: each["foreign_cores"]),
        }
        for name, rounds in found["rounds"].items()
    }


def streams(found: dict) -> dict[str, Cells]:
    numbers = {name.replace("_", " "): value for name, value in found.items() if isinstance(value, int | float)}
    failed = found["streams"] - found["ended"].get("done", 0)
    return {OURS: {**numbers, "ended otherwise than with an answer": failed}}


def scale(found: dict) -> dict[str, Cells]:
    rows: dict[str, Cells] = {}
    for each in found["rows"]:
        cells = rows[f"{each['store']}, {each['chunks']:,}"] = {
            "load/s": each["load_per_second"],
            "index s": each["index_s"],
            "disk MB": each["disk_mb"],
            "memory MB": each["rss_mb"],
        }
        for mode in ("hybrid", "vector", "keyword"):
            cells[f"{mode} p50 / p95 ms"] = f"{each[mode]['p50_ms']} / {each[mode]['p95_ms']}"  # type: ignore[assignment]
            filtered = each[f"{mode}_1_percent"]
            cells[f"{mode}, 1 %"] = f"{filtered['p50_ms']} / {filtered['p95_ms']}"  # type: ignore[assignment]
        cells["recall@10"] = each["vector"]["recall_at_10"]
        cells["recall@10, 1 %"] = each["vector_1_percent"]["recall_at_10"]
    return rows


SECTIONS: dict[str, tuple[Callable[[dict], dict[str, Cells]], str]] = {
    "embed": (
        embedding,
        """Passages of mixed lengths, as many documents at once as a worker takes; sentence-transformers gets all of them in one
call.""",
    ),
    "ingest": (
        ingest,
        """Documents of SciFact. Ours by HTTP, from the first upload until the last is answerable, with empty caches; the
others in one call of their library, with the model loaded. The last row is the time that our embedder needs for the same
passages, and nothing else. CPU and memory are of all processes.""",
    ),
    "query": (
        query,
        """`POST /search`, ten hits; 1, 16 and 64 clients that ask again as soon as they are answered; no question twice; the
documents of the ingest. Ours is a hybrid search; the others search by vectors only, behind one thin FastAPI service each. All
processes: ours has a worker beside the one that serves; pages that they share count twice.""",
    ),
    "start": (start, "From the command to the first answered question; everything is installed, converted and ingested."),
    "streams": (streams, "Answers that stream at once from a slow language model."),
    "scale": (
        scale,
        """One index as it grows; synthetic vectors, real sentences; one question after the other. 1 %: with a filter that
leaves so many.""",
    ),
}


def ratios(results: dict) -> dict[str, float]:
    """What goals speak of; higher is better."""
    found: dict[str, float] = {}
    if "embed" in results:
        rows = embedding(results["embed"])
        peer = rows["sentence-transformers"]["passages/s"]
        found |= {
            f"embedding, {name}, x sentence-transformers": rows[name]["passages/s"] / peer for name in rows if "ours" in name
        }
    for verb, key, what in (
        ("ingest", "documents/s", "ingest, x best peer"),
        ("query", "questions/s, 16", "questions at 16 clients, x best peer"),
    ):
        if verb in results:
            rows = SECTIONS[verb][0](results[verb])
            found[what] = rows[OURS][key] / max(rows[peer][key] for peer in results[verb]["rounds"] if peer != OURS)
    if "ingest" in results:
        rows = ingest(results["ingest"])
        found["ingest, share of our embedder alone"] = rows[OURS]["documents/s"] / rows["our embedder alone"]["documents/s"]
    if "query" in results:
        rows = query(results["query"])
        for key in ("serving process, peak MB", "all processes, peak MB"):
            found[f"{key}, best peer / ours"] = min(rows[peer][key] for peer in rows if peer != OURS) / rows[OURS][key]
    if "start" in results:
        rows = start(results["start"])
        key = "seconds to the first answer"
        found["start, best peer / ours"] = min(rows[peer][key] for peer in rows if peer != OURS) / rows[OURS][key]
    return found


def compare(before: dict, after: dict) -> list[str]:
    """The ratios that have become worse, each in a line."""
    old, new = ratios(before), ratios(after)
    return [f"{name}: {old[name]:.2f} -> {new[name]:.2f}" for name in old if name in new and new[name] < WORSE * old[name]]


def write_report(results: dict, raw: Path) -> None:
    parts = [
        "# Benchmarks",
        "",
        f"Generated by `make bench` from [{raw.name}]({raw.name}), which holds every round. Medians of the rounds.",
        "Foreign cores: what other programs took meanwhile. Read the ratios: machines differ.",
        "",
        f"![questions per second and ingest]({raw.stem}.svg)",
        "",
        "| ratio | |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in ratios(results).items()),
    ]
    for verb, (cells_of, text) in SECTIONS.items():
        if verb in results:
            found = results[verb]
            where = f"{found['date'][:10]}, {found['machine']}. {'; '.join(found['versions'])}."
            parts += ["", f"## {verb.capitalize()}", "", text, "", *table(cells_of(found)), "", where]
    raw.with_suffix(".md").write_text("\n".join(parts) + "\n", encoding="utf-8")
    plot(raw)


def table(rows: dict[str, Cells]) -> list[str]:
    """One row each; of many columns and few rows, the other way round."""
    columns = list(dict.fromkeys(key for cells in rows.values() for key in cells))
    if len(columns) > len(rows):
        head, body = list(rows), [(key, [cells.get(key) for cells in rows.values()]) for key in columns]
    else:
        head, body = columns, [(name, [cells.get(key) for key in columns]) for name, cells in rows.items()]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(map(shown, cells))} |" for name, cells in body]


def shown(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.5f}" if 0.9 < value < 1 else f"{value:,.2f}" if value < 10 and value != int(value) else f"{value:,.0f}"


def plot(raw: Path) -> None:
    """Drawn by matplotlib in an environment of its own: nothing else here needs it."""
    command = [
        shutil.which("uv") or str(Path(sys.executable).with_name("uv")),
        "run",
        "--quiet",
        "--no-project",
        "--python",
        sys.executable,
        "--with",
        "matplotlib>=3.9,<4",
    ]
    environment = {**os.environ, "MPLBACKEND": "svg"}
    subprocess.run([*command, "python", Path(__file__).with_name("plot.py"), raw], check=True, env=environment)
