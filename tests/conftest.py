"""What every test may ask for: a Weaviate server, and a running service of its own."""

from __future__ import annotations

import os

import pytest

from tests.services import llm_url, serve, storage, weaviate_url

__all__ = ["llm_url", "serve", "storage", "weaviate_url"]

MISSING_WEAVIATE = "NO WEAVIATE WAS FOUND: THE TESTS OF THE REAL STORE DID NOT RUN. PUT ITS BINARY ON PATH AS `weaviate`."


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped store must not go unseen in CI."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and any("no Weaviate" in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(MISSING_WEAVIATE, red=True)
