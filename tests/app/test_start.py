"""What a process imports before it is asked for anything: each of these costs seconds or tens of megabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "unstructured",
    "langchain",
    "langchain_core",
    "openai",
    "pandas",
    "scipy",
    "sklearn",
    "py3langid",
    "weaviate",
    "pypdfium2",
    "asyncpg",
    "httpx",
}
OPEN = """
import asyncio, json, sys, tempfile
from pathlib import Path
from app.main import create_app
from app.settings import load_settings

async def main(folder):
    settings = load_settings({"FOOTNOTE_DATA_DIR": folder}, folder=Path(folder)).settings
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass

with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
"""
HELP = "import sys\nfrom app.cli import cli\ntry:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
SHOW = "\nsys.stderr.write(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"


def imported(program: str) -> set[str]:
    """The packages that a process of its own has imported at its end."""
    command = [sys.executable, "-c", program + SHOW]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.timeout(300)
def test_a_service_that_was_asked_nothing_has_imported_nothing_heavy():
    found = imported(OPEN)
    assert {"fastapi", "lancedb", "sqlalchemy"} <= found, "the program has not opened the service"
    assert not found & HEAVY


@pytest.mark.timeout(300)
def test_help_imports_hardly_anything():
    found = imported(HELP)
    assert "typer" in found
    assert not found & (HEAVY | {"pydantic", "alembic", "fastapi", "numpy", "lancedb", "httpx", "sqlalchemy"})


@pytest.mark.timeout(300)
def test_what_is_kept_from_lancedb_is_there_for_everybody_else():
    pytest.importorskip("overrides", reason="from Python 3.12 on LanceDB does without it")
    found = imported(
        "import sys\n"
        "import overrides as before\n"
        "from retrieval.stores.lance_import import lancedb\n"
        "import overrides\n"
        "import pandas\n"
        "assert overrides is before and overrides.override.__module__ == 'overrides.overrides'\n"
        "assert issubclass(lancedb.LanceDBConnection, lancedb.DBConnection)\n"
    )
    assert {"lancedb", "overrides", "pandas"} <= found
