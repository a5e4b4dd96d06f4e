"""What no caller should send, at every door: a clear refusal with a stable code, nothing half-written, the service alive."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.services import free_ports

MIB = 2**20
CORPORA = Path(__file__).parents[3] / "shared" / "corpora"
HEIC = bytes(4) + b"ftypheic" + bytes(100)
ELF = b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 10
NO_PAGES = (
    b"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Kids[]/Count 0>>\nendobj\n"
    b"xref\n0 3\n0000000000 65535 f \n0000000009 00000 n \n0000000056 00000 n \n"
    b"trailer\n<</Size 3/Root 1 0 R>>\nstartxref\n104\n%%EOF\n"
)


@pytest.fixture(scope="module")
def service(serve):
    return serve()


@pytest.fixture(scope="module")
def http(service):
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def small(serve):
    """A service that takes files of 1 MiB and requests of 3 MiB; embedding over HTTP, its memory is that of requests alone."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1"  # where nothing answers, as nothing is asked
    return serve(max_file_mb="1", max_request_mb="3", workers="0", embedder="openai:none", embedder_base_url=url)


@pytest.fixture(scope="module")
def collection(http) -> str:
    name = f"bad-{secrets.token_hex(4)}"
    body = {"name": "a.txt", "text": "Apples are red.", "metadata": {"year": 2020, "tags": ["fruit"]}}
    response = http.post("/ingest?wait=60", json={"documents": [body], "collection": name})
    assert response.json()["documents"][0]["status"] == "ready", response.text
    return name


def traces(service) -> set[str]:
    """Every document, job and kept file of a service."""
    with service.client() as client:
        documents = client.get("/documents", params={"limit": 1000}).json()["documents"]
        jobs = client.get("/jobs", params={"limit": 1000}).json()["jobs"]
    kept = {
        path.name
        for kind in ("originals", "texts", "incoming")
        for path in (service.data_dir / kind).rglob("*")
        if path.is_file()
    }
    return {each["id"] for each in [*documents, *jobs]} | kept


@pytest.fixture
def nothing_left(service) -> Iterator[None]:
    """What a test sends leaves no document, no job and no file, and the service goes on."""
    before = traces(service)
    yield
    assert traces(service) - before == set()
    with service.client() as client:
        assert client.get("/healthz").json()["status"] == "alive"


def refused(response: httpx.Response, status: int, code: str) -> dict:
    """The problem document of a refusal, after a look at its form."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert problem["status"] == status
    assert problem["type"] == f"urn:footnote:error:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


def post(http: httpx.Client, path: str, body: str | bytes, **headers: str) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json", **headers})


def upload(http: httpx.Client, *files: tuple[str, bytes], wait: int = 0, **fields: str) -> httpx.Response:
    return http.post("/ingest", files=[("files", file) for file in files], data=fields, params={"wait": wait})


# --- bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("path", ["/query", "/search", "/ingest", "/collections"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"question":', id="cut short"),
        pytest.param(b'{"question": "\xff"}', id="not UTF-8"),
        pytest.param("[" * 100_000, id="nested deeply"),
        pytest.param('{"question": "x", "top_k": ' + "9" * 5000 + "}", id="a number of 5000 digits"),
    ],
)
def test_a_body_that_is_not_json_is_malformed(http, path, body):
    refused(post(http, path, body), 400, "malformed_request")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("path", ["/query", "/search", "/ingest", "/collections"])
@pytest.mark.parametrize("body", ["null", "[]", '"text"', "17", "{}", ""])
def test_json_of_another_shape_is_invalid(http, path, body):
    response = post(http, path, body)
    refused(response, *((400, "malformed_request") if not body and path == "/ingest" else (422, "invalid_input")))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/query", {"question": "x", "query": 1}, "/query"),
        ("/query", {"question": "x", "a/b~c": 1}, "/a~1b~0c"),
        ("/query", {"question": "x", "history": [{"role": "system", "content": "x"}]}, "/history/0/role"),
        ("/search", {"question": "x", "stream": True}, "/stream"),
        ("/search", {"question": "x", "top_k": 0}, "/top_k"),
        ("/search", {"question": "x", "top_k": 101}, "/top_k"),
        ("/search", {"question": "x", "top_k": "5"}, "/top_k"),
        ("/search", {"question": "x", "top_k": True}, "/top_k"),
        ("/search", {"question": "x", "top_k": float("nan")}, "/top_k"),
        ("/search", {"question": "x", "mode": "magic"}, "/mode"),
        ("/search", {"question": "x", "filter": [1]}, "/filter"),
        ("/search", {"question": "x", "collection": "../x"}, "/collection"),
        ("/search", {"question": ""}, "/question"),
        ("/ingest", {"documents": []}, "/documents"),
        ("/ingest", {"documents": [{"name": "a", "text": "x", "header": 1}]}, "/documents/0/header"),
        ("/ingest", {"documents": [{"name": "a", "text": "x"}], "collection": "a b"}, "/collection"),
        ("/collections", {"name": "x" * 65}, "/name"),
        ("/collections", {"name": "ok", "chunk_size": -1}, "/chunk_size"),
    ],
)
def test_the_error_points_to_the_field_that_is_wrong(http, path, body, pointer):
    problem = refused(post(http, path, json.dumps(body)), 422, "invalid_input")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["errors"][0]["detail"]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("body", [b"--b\r\nnonsense\r\n\r\nx\r\n--b--", b"", b"x" * 1000])
def test_a_form_that_is_none_is_refused(http, body):
    response = http.post("/ingest", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.json()["code"] in {"malformed_request", "invalid_input"}
    refused(response, response.status_code, response.json()["code"])
    refused(http.post("/ingest", content=body, headers={"content-type": "multipart/form-data"}), 400, "malformed_request")
    refused(http.post("/ingest", content=body, headers={"content-type": "text/plain"}), 415, "unsupported_document")


@pytest.mark.usefixtures("nothing_left")
def test_a_form_with_an_unknown_field_or_without_a_file_is_refused(http):
    assert "'colection'" in refused(upload(http, ("a.txt", b"x"), colection="x"), 422, "invalid_input")["detail"]
    refused(http.post("/ingest", files=[("file", ("a.txt", b"x"))]), 422, "invalid_input")
    refused(http.post("/ingest", files=[("files", (None, b"no file, but a text"))]), 422, "invalid_input")
    refused(http.post("/ingest", files=[("files", ("a.txt", b"x")), ("collection", ("c.txt", b"x"))]), 422, "invalid_input")
    refused(upload(http, ("a.txt", b"x"), collection="../x"), 422, "invalid_collection_name")


# --- texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("text", [r"\ud800", r"a\udfffb", r"a\u0000b"])
def test_half_a_surrogate_pair_and_nul_are_refused_wherever_they_stand(http, collection, text):
    for more in (r'"question": "%s"', r'"question": "x", "collection": "%s"', r'"question": "x", "mode": "%s"'):
        for path in ("/query", "/search"):
            refused(post(http, path, "{" + more % text + "}"), 422, "invalid_input")
    refused(post(http, "/query", '{"question": "x", "llm": "' + text + '"}'), 422, "invalid_input")
    for shape in (
        r'{"%s": 1}',
        r'{"document_name": "%s"}',
        r'{"year": {"$%s": 1}}',
        r'{"$%s": 1}',
        r'{"tags": {"$contains": "%s"}}',
    ):
        body = f'{{"question": "x", "collection": "{collection}", "filter": {shape % text}}}'
        refused(post(http, "/search", body), 422, "invalid_filter")
    for shape in (r'{"a": "%s"}', r'{"%s": "a"}', r'{"a": ["%s"]}'):
        body = f'{{"documents": [{{"name": "a.txt", "text": "x", "metadata": {shape % text}}}]}}'
        refused(post(http, "/ingest", body), 422, "invalid_input")
        refused(upload(http, ("a.txt", b"x"), metadata=shape % text), 422, "invalid_input")


@pytest.mark.usefixtures("nothing_left")
def test_an_unknown_field_named_by_half_a_surrogate_pair_is_refused(http):
    refused(post(http, "/query", r'{"question": "x", "\ud800": 1}'), 422, "invalid_input")
    refused(post(http, "/ingest", r'{"documents": [{"name": "a", "text": "x", "\ud800": 1}]}'), 422, "invalid_input")


def test_a_text_with_half_a_surrogate_pair_is_kept_with_a_replacement(http, collection):
    body = rf'{{"documents": [{{"name": "half.txt", "text": "A half \ud800 pair."}}], "collection": "{collection}"}}'
    [document] = post(http, "/ingest?wait=60", body).json()["documents"]
    assert document["status"] in {"ready", "needs_attention"}
    assert http.get(f"/documents/{document['id']}/text").text == "A half \ufffd pair."


@pytest.mark.usefixtures("nothing_left")
def test_a_question_is_neither_too_long_nor_empty(http, collection):
    for path in ("/query", "/search"):
        refused(http.post(path, json={"question": "x" * 10_000, "collection": collection}), 422, "question_too_long")
        refused(http.post(path, json={"question": " \n\t ", "collection": collection}), 422, "invalid_input")
        assert http.post(path, json={"question": "x " * 3_900, "collection": collection}).status_code == 200


# --- filters --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "condition",
    [
        {"colour": "red"},
        {"colour": {"$exists": True}},
        {"year": {"$contains": "2"}},
        {"year": "2020"},
        {"year": {}},
        {"year": {"gte": 2020}},
        {"year": {"$regex": "2.*"}},
        {"year": {"$gt": True}},
        {"year": {"$gt": None}},
        {"year": None},
        {"year": {"$in": []}},
        {"year": {"$in": list(range(201))}},
        {"year": {"$in": [[1]]}},
        {"year": {"$exists": "yes"}},
        {"year": 2**63},
        {"year": float("nan")},
        {"year": {"$lt": float("inf")}},
        {"year": {"$in": [1, float("-inf")]}},
        {"$and": []},
        {"$or": {"year": 1}},
        {"$not": [{"year": 1}]},
        {"$or": [{}]},
        {"$where": "1"},
        {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"year": 1}}}}}}}}}},
    ],
    ids=str,
)
def test_a_filter_of_no_known_shape_is_refused(http, collection, condition):
    for path in ("/query", "/search"):
        body = json.dumps({"question": "apples", "collection": collection, "filter": condition})
        refused(post(http, path, body), 422, "invalid_filter")


@pytest.mark.parametrize("value", ["' OR 1=1 --", '"', "\\", "%", "\u202e", "`", "x" * 10_000])
def test_a_filter_value_is_only_ever_a_value(http, collection, value):
    response = http.post("/search", json={"question": "apples", "collection": collection, "filter": {"document_name": value}})
    assert (response.status_code, response.json()["hits"]) == (200, [])


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("e.txt", b"", 422, "empty_document"),
        ("e.pdf", b"", 422, "empty_document"),
        ("blank.txt", b" \n\t \r\n", 422, "empty_document"),
        ("program.txt", ELF, 415, "unsupported_document"),
        ("program.pdf", ELF, 415, "unsupported_document"),
        ("picture.txt", HEIC, 415, "unsupported_document"),
        ("picture.pdf", HEIC, 415, "unsupported_document"),
        ("setup.exe", b"MZ" + bytes(200), 415, "unsupported_document"),
        ("nul.txt", b"some text\x00\x00\x00\x01\x02\x03" * 50, 422, "unreadable_document"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_at_the_door(http, name, data, status, code):
    problem = refused(upload(http, (name, data)), status, code)
    assert problem["documents"][0]["name"] == name
    assert problem["documents"][0]["error"]["code"] == code


def test_a_pdf_without_pages_fails_with_its_reason(http, collection):
    [document] = upload(http, ("none.pdf", NO_PAGES), wait=60, collection=collection).json()["documents"]
    assert document["status"] == "failed"
    assert document["error"]["code"] in {"empty_document", "unreadable_document"}
    assert (
        http.post("/search", json={"question": "none.pdf", "collection": collection}).json()["hits"][0]["document_name"]
        != "none.pdf"
    )


def test_one_bad_file_does_not_refuse_the_others(http, collection):
    files = [
        ("good.txt", b"Pears are green."),
        ("empty.txt", b""),
        ("program.txt", ELF),
        ("also.md", b"# Plums\n\nPlums are blue."),
    ]
    response = upload(http, *files, wait=60, collection=collection)
    documents = response.json()["documents"]
    assert response.status_code == 200
    assert [document["name"] for document in documents] == ["good.txt", "empty.txt", "program.txt", "also.md"]
    assert [document["status"] for document in documents] == ["ready", "failed", "failed", "ready"]
    assert [(document["error"] or {}).get("code") for document in documents] == [
        None,
        "empty_document",
        "unsupported_document",
        None,
    ]
    assert [document["id"] is None for document in documents] == [False, True, True, False]
    assert upload(http, ("new.txt", b"Figs are brown."), ("empty.txt", b""), collection=collection).status_code == 202


# --- names ----------------------------------------------------------------------------------------------------------------


def hostile_names() -> list[str]:
    """Of the corpus where it is present; each is written there with escapes and with remarks in brackets."""
    listed = CORPORA / "hostile" / "upload_names.tsv"
    names = [
        "../../x.pdf",
        "..\\..\\x.pdf",
        "/etc/x.pdf",
        "C:\\x.pdf",
        "a\x00b.pdf",
        ".pdf",
        "CON.pdf",
        "x" * 600,
        "..",
        ".",
        "/",
        " ",
        "a\r\nSet-Cookie: x=1.pdf",
    ]
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines()[1:]:
            escaped = re.sub(r" \((with|NFD|NFC).*\)$", "", line.split("\t")[0])
            names.append(
                re.sub(
                    r"\\u([0-9a-f]{4})|\\([rn])",
                    lambda m: chr(int(m[1], 16)) if m[1] else {"r": "\r", "n": "\n"}[m[2]],
                    escaped,
                )
            )
    return names


@pytest.mark.parametrize("name", hostile_names(), ids=lambda name: ascii(name)[1:40])
def test_a_tricky_name_becomes_a_safe_one_or_is_refused(http, service, collection, name):
    outside = {path for path in service.data_dir.parent.rglob("*") if not path.is_relative_to(service.data_dir)}
    as_file = upload(http, (name, b"A harmless text."), collection=collection)
    as_text = http.post("/ingest", json={"documents": [{"name": name, "text": "A harmless text."}], "collection": collection})
    for response in (as_file, as_text):
        assert response.status_code == 202 or 400 <= response.status_code < 500, response.text
        if response.status_code != 202:
            refused(response, response.status_code, response.json()["code"])
            continue
        kept = response.json()["documents"][0]["name"]
        assert not {"..", ".", ""} & set(kept.split("/"))
        assert kept.isprintable()
        assert "\\" not in kept
    assert {path for path in service.data_dir.parent.rglob("*") if not path.is_relative_to(service.data_dir)} == outside
    assert not list(service.data_dir.rglob("*x.pdf"))
    assert not list(service.data_dir.rglob("*pwned*"))


def test_a_download_keeps_its_headers_whatever_the_name(http, collection):
    names = ['"; filename="x.html', "a\r\nSet-Cookie: x=1.txt", "привет мир.txt", "<img src=x onerror=alert(1)>.txt"]
    body = {"documents": [{"name": name, "text": "A harmless text."} for name in names], "collection": collection}
    for document in http.post("/ingest?wait=60", json=body).json()["documents"]:
        original = http.get(f"/documents/{document['id']}/original")
        assert original.content == b"A harmless text."
        assert original.headers["content-disposition"].isascii()
        assert original.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in original.headers


# --- metadata -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "metadata",
    [
        "{",
        "[]",
        "17",
        '{"a": {"b": 1}}',
        '{"a": [1]}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1e999}',
        '{"a": 9007199254740993}',
        '{"a": ' + "9" * 5000 + "}",
        '{"": 1}',
        '{"$a": 1}',
        '{"document_id": "x"}',
        '{"' + "k" * 101 + '": 1}',
        '{"a": "' + "x" * 40_000 + '"}',
        json.dumps({f"k{i}": i for i in range(101)}),
        "[" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
    ],
    ids=lambda value: value[:20],
)
def test_metadata_is_a_flat_object_of_bearable_size(http, metadata):
    refused(upload(http, ("a.txt", b"A text that stays out."), metadata=metadata), 422, "invalid_input")


# --- ids, limits, cursors -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "identity", ["x", "%00", "..", "..%2F..%2Fetc%2Fpasswd", "%ED%A0%80", "%F0%9F%92%A9", "'%20OR%201=1", "x" * 3000, "-1"]
)
def test_an_id_that_names_nothing_is_not_found(http, identity):
    paths = {
        "document_not_found": ["/documents/{}", "/documents/{}/original", "/documents/{}/text", "/documents/{}/chunks"],
        "job_not_found": ["/jobs/{}"],
        "collection_not_found": ["/collections/{}"],
    }
    for code, shapes in paths.items():
        for shape in shapes:
            response = http.get(shape.format(identity))
            if ".." not in identity:
                refused(response, 404, code)
            assert response.status_code in {200, 404}  # a client itself turns /documents/.. into /
    if ".." not in identity:
        refused(http.delete(f"/documents/{identity}"), 404, "document_not_found")
        refused(http.delete(f"/collections/{identity}"), 404, "collection_not_found")
        for verb in ("cancel", "retry"):
            refused(http.post(f"/jobs/{identity}/{verb}"), 404, "job_not_found")


def test_a_parameter_that_a_route_does_not_know_is_refused_with_those_that_it_takes(http, nothing_left):
    sent = http.post("/ingest", params={"wiat": 60}, json={"documents": [{"name": "a.txt", "text": "Apples are red."}]})
    [error] = refused(sent, 422, "invalid_input")["errors"]
    assert error == {"pointer": "/wiat", "detail": "unknown parameter; this route takes wait"}
    problem = refused(http.get("/jobs", params={"limit": 1, "colection": "a", "State": "dead"}), 422, "invalid_input")
    assert [each["pointer"] for each in problem["errors"]] == ["/State", "/colection"]
    assert "collection, cursor, document_id, limit, state" in problem["detail"]
    assert "this route takes none" in refused(http.delete("/collections/x?force=1"), 422, "invalid_input")["detail"]
    assert http.get("/healthz?from=probe").status_code == 200  # what watches the service may add what it likes


@pytest.mark.parametrize("path", ["/documents", "/jobs", "/collections"])
def test_a_limit_is_between_1_and_1000_and_a_cursor_is_short(http, path):
    for limit in ("0", "-1", "1001", "1e3", "many", "9" * 400, ""):
        problem = refused(http.get(path, params={"limit": limit}), 422, "invalid_input")
        assert problem["errors"][0]["pointer"] == "/limit"
    refused(http.get(path, params={"cursor": "x" * 201}), 422, "invalid_input")
    assert http.get(path, params={"cursor": "no such cursor"}).status_code == 200


@pytest.mark.usefixtures("nothing_left")
def test_a_collection_that_is_not_there_is_not_found(http):
    for path in ("/query", "/search"):
        refused(http.post(path, json={"question": "x", "collection": "absent"}), 404, "collection_not_found")
    refused(http.post("/query", json={"question": "x", "collection": "absent", "stream": True}), 404, "collection_not_found")
    refused(http.post("/collections/absent/reindex", json={}), 404, "collection_not_found")
    refused(http.get("/nowhere"), 404, "not_found")


def test_a_reindex_by_an_embedder_that_cannot_be_is_refused(http, collection):
    for embedder in ("nope:x", "nope", "", "local:/no/such/folder"):
        response = http.post(f"/collections/{collection}/reindex", json={"embedder": embedder})
        refused(response, 422, "invalid_input")


def test_a_method_that_a_route_does_not_take_is_refused_with_those_that_it_takes(http):
    response = http.put("/query", json={})
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


# --- retries --------------------------------------------------------------------------------------------------------------


def test_an_idempotency_key_answers_the_same_again_and_refuses_another_body(http, service, collection):
    key = {"Idempotency-Key": secrets.token_hex(8)}
    body = {"documents": [{"name": "idem.txt", "text": "Quinces are yellow."}], "collection": collection}
    first = http.post("/ingest", json=body, headers=key, params={"wait": 60}).json()
    assert http.post("/ingest", json=body, headers=key, params={"wait": 60}).json() == first
    before = traces(service)
    other = {**body, "documents": [{"name": "other.txt", "text": f"A text that stays out: {secrets.token_hex(8)}."}]}
    refused(http.post("/ingest", json=other, headers=key), 409, "idempotency_conflict")
    assert traces(service) - before == set()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("key", ["a b", "", "x" * 201, "\xe9"])
def test_an_idempotency_key_is_visible_ascii(http, key):
    body = {"documents": [{"name": "a.txt", "text": "x"}]}
    refused(http.post("/ingest", json=body, headers={b"Idempotency-Key": key.encode("latin-1")}), 422, "invalid_input")


# --- sizes ----------------------------------------------------------------------------------------------------------------


def test_a_file_over_the_limit_is_refused_beside_one_within_it(small):
    with small.client() as http:
        response = upload(http, ("large.txt", b"word " * (MIB // 5 + 1)), ("small.txt", b"A small text."))
        large, fine = response.json()["documents"]
        assert response.status_code == 202
        assert (large["status"], large["error"]["code"]) == ("failed", "document_too_large")
        assert "FOOTNOTE_MAX_FILE_MB" in large["error"]["detail"]
        assert fine["status"] == "queued"
        refused(upload(http, ("large.txt", b"word " * (MIB // 5 + 1))), 413, "document_too_large")
    assert len([path for path in (small.data_dir / "originals").rglob("*") if path.is_file()]) == 1


class Upload:
    """A body that is made while it is sent, up to 2 GiB."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        piece = b"word " * 13_107
        while self.sent < 2 * 1024 * MIB:
            self.sent += len(piece)
            yield piece


FORM = {"content-type": "multipart/form-data; boundary=b"}
FILE = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "headers", "head"),
    [
        pytest.param("/ingest", FORM, FILE, id="chunked form"),
        pytest.param("/ingest", {**FORM, "content-length": str(2 * 1024 * MIB)}, FILE, id="form that says its length"),
        pytest.param("/ingest", JSON, b'{"documents": [{"name": "a", "text": "', id="chunked JSON"),
        pytest.param("/query", JSON, b'{"question": "', id="chunked question"),
        pytest.param(
            "/query", {**JSON, "content-length": str(2 * 1024 * MIB)}, b'{"question": "', id="question that says its length"
        ),
    ],
)
def test_an_endless_upload_is_cut_while_it_streams(small, path, headers, head):
    server = psutil.Process(small.process.pid)
    body, before = Upload(head), server.memory_info().rss
    with small.client() as http:
        response = http.post(path, content=iter(body), headers=headers)
        problem = refused(response, 413, "request_too_large")
        assert "3 MiB" in problem["detail"]
        assert body.sent < 64 * MIB
        assert server.memory_info().rss - before < 48 * MIB
        assert http.get("/healthz").status_code == 200
    assert not list((small.data_dir / "incoming").iterdir())


def test_a_body_within_the_limit_is_taken_and_one_byte_more_is_not(small):
    with small.client() as http:
        rest = b'"}'
        start = b'{"question": "x", "collection": "'
        fits = start + b"x" * (3 * MIB - len(start) - len(rest)) + rest
        refused(post(http, "/query", fits), 422, "invalid_input")
        refused(post(http, "/query", fits + b" "), 413, "request_too_large")
