"""The OpenAPI document tells the truth: what it promises is kept under generated requests, and nothing is left out."""

from __future__ import annotations

import re

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
CONTRACT = {
    "/ingest": {"post"},
    "/documents": {"get"},
    "/documents/{document_id}": {"get", "delete"},
    "/documents/{document_id}/original": {"get"},
    "/documents/{document_id}/text": {"get"},
    "/documents/{document_id}/chunks": {"get"},
    "/collections": {"get", "post"},
    "/collections/{name}": {"get", "patch", "delete"},
    "/collections/{name}/reindex": {"post"},
    "/jobs": {"get"},
    "/jobs/{job_id}": {"get"},
    "/jobs/{job_id}/events": {"get"},
    "/jobs/{job_id}/cancel": {"post"},
    "/jobs/{job_id}/retry": {"post"},
    "/query": {"post"},
    "/search": {"post"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}
OPEN = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture(scope="module")
def service(serve):
    return serve(max_file_mb="1", max_request_mb="3", workers="0")


@pytest.fixture(scope="module")
def document(service) -> dict:
    with service.client() as client:
        return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def operations(document) -> list[tuple[str, str, dict]]:
    return [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


ROUTES = [(path, method) for path, methods in CONTRACT.items() for method in sorted(methods)]


@pytest.mark.parametrize(("path", "method"), ROUTES)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_what_the_document_promises_is_kept(schema, path, method, mode):
    @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def is_kept(case: schemathesis.Case) -> None:
        if is_wait(case.query.get("wait")):
            case.query["wait"] = 0  # no worker runs here, so that it would be a wait for nothing
        if isinstance(case.body, dict) and is_hurry(case.body.get("timeout_seconds")):
            case.body["timeout_seconds"] = 60
        case.call_and_validate(checks=CHECKS, timeout=60)

    try:
        is_kept()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing about this operation that could be wrong


def is_wait(value: object) -> bool:
    try:
        return 0 <= float(str(value)) <= 600
    except ValueError:
        return False


def is_hurry(value: object) -> bool:
    """A time so short that 504 would be the right answer."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 60


def test_every_route_of_the_contract_is_there(document):
    assert {path: set(methods) for path, methods in document["paths"].items()} == CONTRACT


def test_every_route_says_what_it_does(operations):
    for path, method, operation in operations:
        assert operation["summary"], (path, method)
        assert operation["description"], (path, method)
        assert operation["tags"], (path, method)
    identities = [operation["operationId"] for _, _, operation in operations]
    assert len(set(identities)) == len(identities)


def test_every_body_has_an_example(document, operations):
    for path, method, operation in operations:
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            assert has_example(document, content), (path, method, kind)


def has_example(document: dict, content: dict) -> bool:
    model = content.get("schema", {})
    if "$ref" in model:
        model = document["components"]["schemas"][model["$ref"].rsplit("/", 1)[1]]
    fields = model.get("properties", {}).values()
    return bool({"example", "examples"} & (set(content) | set(model))) or any(
        {"example", "examples"} & set(each) for each in fields
    )


def test_every_error_is_documented_as_a_problem(operations):
    for path, method, operation in operations:
        errors = {status: response for status, response in operation["responses"].items() if status >= "400"}
        if path in OPEN:
            continue
        assert {"400", "401", "422", "500", "503"} <= set(errors), (path, method)
        assert ("404" in errors) or "{" not in path, (path, method)
        for status, response in errors.items():
            assert list(response["content"]) == ["application/problem+json"], (path, method, status)
            assert response["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_reference_leads_somewhere(document):
    for name in re.findall(r"'#/components/schemas/([^']+)'", str(document)):
        assert name in document["components"]["schemas"]


def test_the_api_page_needs_no_other_server(service):
    with service.client() as client:
        page = client.get("/docs")
        assert page.status_code == 200
        sources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
        assert any(source.endswith(".js") for source in sources)
        for source in sources:
            assert source.startswith("/")
            assert client.get(source).status_code == 200
        assert "//cdn" not in page.text
