"""Every error that can leave the service has a stable code of its own, a status and a title."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter

import pytest

import app
import ingest
import retrieval
from app.errors import EXIT_FAILED, EXIT_USAGE, STATUS, TITLES, as_dict, exit_code_of, problem, status_of
from retrieval import errors


def every_error() -> list[type[errors.FootnoteError]]:
    for package in (app, ingest, retrieval):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found, waiting = [], [errors.FootnoteError]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].__subclasses__()
    return sorted(set(found), key=lambda kind: kind.__name__)


EVERY = every_error()


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_its_status_a_title(kind):
    assert kind.code in STATUS
    assert STATUS[kind.code] in TITLES
    assert kind.code == kind.code.lower()


def test_no_two_errors_share_a_code():
    counts = Counter(kind.code for kind in EVERY)
    assert [code for code, count in counts.items() if count > 1] == []


def test_what_the_caller_can_mend_is_a_4xx_and_wrong_usage():
    for kind in EVERY:
        if issubclass(kind, errors.InvalidInput):
            assert 400 <= STATUS[kind.code] < 500, kind
            assert exit_code_of(kind("x")) == EXIT_USAGE
        if issubclass(kind, errors.ServiceError):
            assert STATUS[kind.code] >= 500, kind
            assert exit_code_of(kind("x")) == EXIT_FAILED


def test_what_may_pass_by_itself_says_so():
    for kind in EVERY:
        if STATUS[kind.code] in {429, 503}:
            assert kind.retryable, kind


def test_a_problem_has_the_members_of_the_contract():
    found = problem("collection_not_found", "there is none", request_id="r1", errors=[])
    assert found == {
        "type": "urn:footnote:error:collection_not_found",
        "title": "Not found",
        "status": 404,
        "detail": "there is none",
        "code": "collection_not_found",
        "request_id": "r1",
        "errors": [],
    }
    assert problem("no such code", "x", request_id="r")["status"] == status_of("no such code") == 500


def test_an_error_is_kept_with_its_code_and_whether_a_retry_makes_sense():
    assert as_dict(errors.StoreUnavailable("down")) == {"code": "store_unavailable", "detail": "down", "retryable": True}
    assert as_dict(errors.EmptyDocument("empty")) == {"code": "empty_document", "detail": "empty", "retryable": False}
