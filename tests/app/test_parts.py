"""Archives and mails through the product's doors: what is in them is found, cited, replaced and removed like any document."""

from __future__ import annotations

import io
import secrets
import zipfile
from dataclasses import fields
from email.message import EmailMessage

import httpx
import pytest

import ingest.parsers
from app.schemas import Receipt
from tests.app.test_cli import footnote, lines
from tests.app.test_story import names, search, wait_for_job

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def service(serve):
    return serve()


@pytest.fixture(scope="module")
def http(service):
    with service.client() as client:
        yield client


@pytest.fixture
def collection() -> str:
    return f"p-{secrets.token_hex(4)}"


def packed(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def letter(subject: str, body: str, **attached: str) -> bytes:
    message = EmailMessage()
    message["From"], message["Subject"] = "ada@example.org", subject
    message.set_content(body)
    for name, text in attached.items():
        message.add_attachment(text, filename=f"{name}.txt")
    return message.as_bytes()


def upload(http: httpx.Client, collection: str, name: str, data: bytes) -> dict:
    form = {"collection": collection, "metadata": '{"year": 2025}'}
    response = http.post("/ingest?wait=120", files=[("files", (name, data))], data=form)
    assert response.status_code == 200, response.text
    [document] = response.json()["documents"]
    return document


def parts(http: httpx.Client, document_id: str) -> dict[str, dict]:
    found = http.get("/documents", params={"parent": document_id}).json()["documents"]
    return {document["name"]: document for document in found}


def test_what_is_in_an_archive_is_answerable_once_the_upload_was_waited_for(http, collection):
    mail = letter("Vault", "See the attachment.", code="The vault's code is 4711.")
    data = packed({"in/apples.txt": "Apples are red in October.", "mail.eml": mail, "tool.exe": b"\x7fELF" * 9})
    sent = upload(http, collection, "box.zip", data)
    assert (sent["status"], sent["parts"], sent["failed_parts"]) == ("ready", 3, 1)
    box = http.get(f"/documents/{sent['id']}").json()
    receipt = box["receipt"]
    assert (box["parent_id"], receipt["parts"], receipt["failed_parts"], box["chunks"]) == (None, 3, 1, 0)
    assert "3 documents came out of it." in receipt["notes"]
    inner = parts(http, sent["id"])
    assert {name: document["status"] for name, document in inner.items()} == {
        "box.zip/in/apples.txt": "ready",
        "box.zip/mail.eml": "ready",
        "box.zip/tool.exe": "failed",
    }
    assert inner["box.zip/tool.exe"]["error"]["code"] == "unsupported_document"
    assert names(search(http, collection, "colour of apples", filter={"year": 2025}))[0] == "box.zip/in/apples.txt"
    [code] = parts(http, inner["box.zip/mail.eml"]["id"]).values()
    hit = search(http, collection, "4711", mode="keyword")[0]
    assert (hit["document_id"], hit["document_name"]) == (code["id"], "box.zip/mail.eml/code.txt")
    assert http.get(f"/documents/{code['id']}/original").text.strip() == "The vault's code is 4711."


def test_a_receipt_counts_failures_at_any_depth_until_they_are_mended(http, collection):
    mail = EmailMessage()
    mail.set_content("See the attachment.")
    mail.add_attachment(b"\x7fELF" * 9, maintype="application", subtype="octet-stream", filename="tool.exe")
    sent = upload(http, collection, "box.zip", packed({"mail.eml": mail.as_bytes(), "tool.exe": b"\x7fELF" * 9}))
    assert (sent["status"], sent["parts"], sent["failed_parts"]) == ("ready", 2, 2)
    assert parts(http, sent["id"])["box.zip/mail.eml"]["receipt"]["failed_parts"] == 1
    again = upload(http, collection, "box.zip", packed({"mail.eml": letter("Vault", "No attachment.")}))
    assert (again["id"], again["status"], again["failed_parts"]) == (sent["id"], "ready", 0)


def test_a_new_version_reads_again_only_what_changed(http, collection):
    first = upload(http, collection, "box.zip", packed({"a.txt": "Apples are red.", "b.txt": "Pears are green."}))
    before = parts(http, first["id"])
    assert (
        upload(http, collection, "box.zip", packed({"a.txt": "Apples are red.", "c.txt": "Figs are brown."}))["id"]
        == first["id"]
    )
    after = {name: part for name, part in parts(http, first["id"]).items() if part["status"] != "deleting"}
    assert sorted(after) == ["box.zip/a.txt", "box.zip/c.txt"]
    assert after["box.zip/a.txt"]["job_id"] == before["box.zip/a.txt"]["job_id"]
    assert sorted(names(search(http, collection, "colour of fruit"))) == ["box.zip/a.txt", "box.zip/c.txt"]


def test_deleting_an_archive_deletes_what_was_in_it(http, collection):
    kept = upload(http, collection, "kept.txt", b"Apples are red.")
    gone = upload(
        http, collection, "box.zip", packed({"a.txt": "Apples are blue.", "m.eml": letter("x", "y", z="Apples sink.")})
    )
    job = http.delete(f"/documents/{gone['id']}").json()
    assert names(search(http, collection, "apples")) == ["kept.txt"]
    wait_for_job(http, job["id"])
    [left] = http.get("/documents", params={"collection": collection}).json()["documents"]
    assert left["id"] == kept["id"]


def test_a_reindex_makes_no_parts_again(http, collection):
    upload(http, collection, "box.zip", packed({"a.txt": "Apples are red.", "b.txt": "Pears are green."}))
    before = {d["id"]: d["version"] for d in http.get("/documents", params={"collection": collection}).json()["documents"]}
    started = http.post(f"/collections/{collection}/reindex", json={"force": True}).json()
    assert wait_for_job(http, started["job_id"], 120)["state"] == "succeeded"
    after = {d["id"]: d["version"] for d in http.get("/documents", params={"collection": collection}).json()["documents"]}
    assert after == before
    assert len(search(http, collection, "colour of fruit")) == 2


def test_the_receipt_counts_what_the_model_was_given(http, collection):
    words = " ".join(f"The lighthouse number {i} stands on its own rock." for i in range(200))
    document = http.get(f"/documents/{upload(http, collection, 'long.txt', words.encode())['id']}").json()
    receipt = document["receipt"]
    assert receipt["chunks"] == document["chunks"] > 5
    assert receipt["tokens"] >= 2000
    assert receipt["tokens_cut"] == 0
    assert set(receipt["stages"]) == {"reading", "embedding", "storing"}


def test_the_schema_shows_all_that_a_receipt_holds():
    held = {field.name for field in fields(ingest.parsers.Receipt)}
    counted = {"parts", "failed_parts", "chunks", "tokens", "tokens_cut", "embedded", "cached", "stages"}
    assert set(Receipt.model_fields) == held | counted


def test_the_command_line_waits_for_parts_and_shows_receipts(service, http, collection, tmp_path):
    (tmp_path / "box.zip").write_bytes(packed({"a.txt": "Apples are red.", "b.bin": b"\x7fELF" * 9}))
    url = f"--url={service.url}"
    said = footnote("ingest", tmp_path, "-c", collection, url, expect=3)
    assert "2 ready, 1 failed" in said
    assert "failed           box.zip/b.bin: " in said
    [box] = http.get("/documents", params={"collection": collection, "name": "box.zip"}).json()["documents"]
    shown = dict(line.split(maxsplit=1) for line in footnote("documents", box["id"], url).splitlines())
    assert (shown["name"], shown["status"], shown["parts"]) == ("box.zip", "ready", "2 documents, 1 failed")
    listed = lines("documents", "--part-of", box["id"], url)
    assert {document["parent_id"] for document in listed} == {box["id"]}
