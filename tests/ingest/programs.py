"""Programs that tests of formats need: skipped without them on a laptop, a failure in CI."""

from __future__ import annotations

import os

import pytest

from ingest.parsers.programs import find
from retrieval.errors import MissingProgram


def require(program: str) -> None:
    """Skip the test, or fail it in CI, if a program is not here; none is named by an empty string."""
    if not program:
        return
    try:
        find(program, "the test's file")
    except MissingProgram as error:
        if os.environ.get("CI"):
            pytest.fail(error.message)
        pytest.skip(error.message)
