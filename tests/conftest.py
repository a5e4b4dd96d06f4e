"""What every test may ask for: a Weaviate server, and a running service of its own."""

from __future__ import annotations

import os

import pytest

from tests.services import llm_url, serve, storage, weaviate_url

__all__ = ["llm_url", "serve", "storage", "weaviate_url"]

LONGEST = ("test_openvino.py", "test_chaos.py", "test_delivery.py", "test_architectures.py", "test_embedder_change.py")
"""Files of a minute and more. They are begun first: one begun last would keep one process busy and the others waiting."""

MISSING_WEAVIATE = "NO WEAVIATE WAS FOUND: THE TESTS OF THE REAL STORE DID NOT RUN. PUT ITS BINARY ON PATH AS `weaviate`."


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In this order pytest-xdist hands out files."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped store must not go unseen in CI."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and any("no Weaviate" in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(MISSING_WEAVIATE, red=True)
