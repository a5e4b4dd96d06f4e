"""The README says what is so: settings, verbs, commands and files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from app.cli import cli
from app.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENT = {"FOOTNOTE_URL", "FOOTNOTE_API_KEY", "FOOTNOTE_CONFIG"}
OF_OTHERS = {"FOOTNOTE_PUBLISH", "FOOTNOTE_SERVICE_HOST"}
"""A variable of the compose file, and what Kubernetes would set for a service of our name."""


def test_every_setting_stands_in_the_table_with_its_default_and_meaning():
    table = README.split("<!-- settings")[1].split("<!-- end of settings")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split(" | "))
        for line in table.splitlines()
        if line.startswith("| `FOOTNOTE_")
    ]
    shown = {name.strip("`"): (default.strip("` "), meaning) for name, default, meaning in rows}
    assert set(shown) == {f"FOOTNOTE_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        assert shown[f"FOOTNOTE_{name.upper()}"] == (default, field.description)


def test_every_setting_that_is_named_anywhere_exists():
    deployed = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "Dockerfile", ROOT / "docker-compose.yml", *deployed)]
    named = set(re.findall(r"FOOTNOTE_[A-Z_]+[A-Z]", "\n".join([README, *texts])))
    assert named - CLIENT - OF_OTHERS <= {f"FOOTNOTE_{name.upper()}" for name in Settings.model_fields}


def test_every_command_that_is_shown_exists():
    verbs = set(re.findall(r"footnote ([a-z]+)[ `\n]", " ".join(re.findall(r"(?:\$ |`)footnote [^\n`]+", README)) + " "))
    assert verbs <= set(get_command(cli).commands)
    targets = set(re.findall(r"`make (\w+)`|\$ make (\w+)", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{a or b}:", makefile, re.MULTILINE) for a, b in targets)


def test_every_file_that_is_named_exists():
    for path in re.findall(r"`((?:app|ingest|docs|benchmarks|deploy|data)/[\w./-]+)`", README):
        assert path == "data/var" or (ROOT / path).exists(), path
