"""Files within files: archives, mails, mailboxes, Outlook's messages; and their way out of the parser's process."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from ingest.blobs.folder import Folder
from ingest.documents import Room
from ingest.files import Files
from ingest.names import clean_name
from ingest.parsers.archive import parse_zip
from ingest.parsers.isolation import ParserPool
from ingest.parsers.mail import parse_mail, parse_mbox, parse_msg
from ingest.parsers.media import MAIL
from ingest.parsers.parsed import File, Parsed, Part
from ingest.parts import UNKNOWN, keep_parts
from ingest.records import Upload
from retrieval.errors import DocumentTooLarge, EmptyDocument, EncryptedDocument, ServiceError, UnreadableDocument
from tests.ingest.outlook_files import attachment, compound, message, recipient

CORPUS = Path(__file__).parents[3] / "shared" / "corpora" / "files"


def packed(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpacked(members: dict[str, bytes | str] | bytes) -> Parsed:
    return parse_zip(File(members if isinstance(members, bytes) else packed(members), "a.zip"))


def names(parsed: Parsed) -> list[str]:
    return [part.name for part in parsed.parts]


# Archives


def test_the_files_of_an_archive_are_parts_with_their_folders() -> None:
    parsed = unpacked({"in/": "", "in/a.txt": "one", "../b.md": "# two"})
    assert parsed.parts == (Part("in/a.txt", b"one"), Part("b.md", b"# two"))
    assert (parsed.text, parsed.receipt.needs_attention, parsed.receipt.notes) == ("", None, ())


def test_a_damaged_archive_in_an_archive_is_named_and_the_rest_is_read() -> None:
    inner = bytearray(packed({"b.txt": "2"}))
    inner[inner.index(b"PK\x01\x02") + 6] = 99  # it wants a reader of version 9.9
    parsed = unpacked({"a.txt": "1", "in.zip": bytes(inner), "c.txt": "3"})
    assert names(parsed) == ["a.txt", "c.txt"]
    assert "in.zip" in (parsed.receipt.needs_attention or "")


def test_a_member_with_broken_fields_is_named_and_the_rest_is_read() -> None:
    data = bytearray(packed({"a.txt": "1", "b.txt": "2"}))
    offsets = (data.rindex(b"PK\x01\x02") + 42, data.rindex(b"PK\x05\x06") + 16)
    for at in offsets:  # as these say, the first member begins before the file
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "little") + 5).to_bytes(4, "little")
    parsed = unpacked(bytes(data))
    assert names(parsed) == ["b.txt"]
    assert "a.txt" in (parsed.receipt.needs_attention or "")


def test_an_archive_in_an_archive_is_unpacked_and_one_in_that_is_named() -> None:
    deepest = packed({"c.txt": "3"})
    parsed = unpacked({"a.txt": "1", "in.zip": packed({"b.txt": "2", "deep.zip": deepest})})
    assert names(parsed) == ["a.txt", "in.zip/b.txt"]
    assert parsed.receipt.notes == ("1 files are archives in an archive in the archive and were not read: in.zip/deep.zip.",)
    assert "Take them out" in (parsed.receipt.needs_attention or "")


def test_hidden_and_empty_files_are_left_out_and_noted() -> None:
    parsed = unpacked({"a.txt": "1", "__MACOSX/._a.txt": "x", ".git/config": "x", "~$a.docx": "x", "none.txt": ""})
    assert names(parsed) == ["a.txt"]
    assert parsed.receipt.needs_attention is None
    assert [note.partition(" files ")[0] for note in parsed.receipt.notes] == ["3", "1"]


def with_flag(data: bytes, flag: int) -> bytes:
    """The same archive with a flag set on each member, in its header and in the central directory."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(mark)
        while at >= 0:
            struct.pack_into("<H", changed, at + offset, struct.unpack_from("<H", changed, at + offset)[0] | flag)
            at = changed.find(mark, at + 4)
    return bytes(changed)


def test_an_archive_with_a_password_says_so() -> None:
    with pytest.raises(EncryptedDocument, match="password"):
        unpacked(with_flag(packed({"a.txt": "secret"}), 0x1))


def test_a_damaged_member_is_named_and_the_others_are_read() -> None:
    data = packed({"a.txt": "first of all", "b.txt": "second"})
    at = data.index(b"a.txt") + len("a.txt")
    parsed = unpacked(data[:at] + bytes(4) + data[at + 4 :])
    assert names(parsed) == ["b.txt"]
    assert "damaged" in (parsed.receipt.needs_attention or "")
    assert "a.txt" in (parsed.receipt.needs_attention or "")


def test_an_archive_without_files_is_empty_and_one_of_ruins_unreadable() -> None:
    with pytest.raises(EmptyDocument):
        unpacked({"in/": "", ".hidden": "x"})
    data = packed({"a.txt": "first of all"})
    with pytest.raises(UnreadableDocument):
        unpacked(data.replace(b"PK\x03\x04", b"PK\x03\x05", 1))


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    inner = packed({"zeros": bytes(50 * 2**20)})
    with pytest.raises(DocumentTooLarge, match="Unpack it"):
        unpacked({f"{i}.zip": inner for i in range(5)})


@pytest.mark.parametrize(
    ("encoding", "wanted"),
    [
        ("utf-8", ["отчёт за март.txt", "plain.txt"]),
        ("cp866", ["отчёт за март.txt", "договор.docx"]),
        ("cp932", ["会議の議事録.docx", "資料.xlsx"]),
        ("gbk", ["二零二五年度工作报告.txt", "会议纪要.docx", "财务报表.xlsx"]),
        ("cp437", ["Überblick.txt", "Grüße.docx"]),
        ("cp437", ["café.txt"]),
    ],
)
def test_names_in_the_writers_own_encoding_are_read(encoding: str, wanted: list[str]) -> None:
    raw = [name.encode(encoding) for name in wanted]
    stand_ins = [f"{number}".ljust(len(name), "x") for number, name in enumerate(raw)]
    data = packed(dict.fromkeys(stand_ins, "1"))
    for stand_in, name in zip(stand_ins, raw, strict=True):
        data = data.replace(stand_in.encode(), name)
    assert names(unpacked(data)) == wanted


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/a.txt", "abs/a.txt"),
        ("C:\\temp\\a.txt", "temp/a.txt"),
        ("a\u202efdp.exe", "afdp.exe"),
        ("a\nb\0.txt", "ab.txt"),
        ("././", ""),
    ],
)
def test_names_lose_their_tricks(name: str, clean: str) -> None:
    assert clean_name(name) == clean


# Mail


def mail(**headers: str) -> EmailMessage:
    composed = EmailMessage()
    for name, value in {"From": "ada@example.org", "Subject": "Greetings", **headers}.items():
        composed[name] = value
    return composed


def test_attachments_are_parts_and_inline_pictures_are_counted() -> None:
    composed = mail()
    composed.set_content("The body.")
    composed.add_alternative("<p>The body again</p><img src='cid:logo'>", subtype="html")
    composed.get_payload()[1].add_related(b"\x89PNG", "image", "png", cid="<logo>")
    composed.add_attachment("attached words", filename="notes.txt")
    composed.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="../../a report.pdf")
    composed.add_attachment(b"\x89PNG!", maintype="image", subtype="png", filename="photo.png")
    parsed = parse_mail(File(composed.as_bytes(), "a.eml"))
    assert parsed.text == "Greetings\n\nFrom: ada@example.org\nAttachments: notes.txt, a report.pdf, photo.png\n\nThe body."
    assert [(part.name, part.media_type) for part in parsed.parts] == [
        ("notes.txt", "text/plain"),
        ("a report.pdf", "application/pdf"),
        ("photo.png", "image/png"),
    ]
    assert parsed.parts[0].data.strip() == b"attached words"
    assert parsed.receipt.images_skipped == 1


def test_attachments_beside_a_body_that_is_not_chosen_are_parts_all_the_same() -> None:
    """Apple's mail program puts them into the HTML alternative."""
    composed = mail()
    composed.set_content("Plain.")
    composed.add_alternative("<p>Rich</p>", subtype="html")
    composed.get_payload()[1].make_mixed()
    composed.get_payload()[1].add_attachment(b"data", maintype="application", subtype="pdf", filename="a.pdf")
    parsed = parse_mail(File(composed.as_bytes(), "a.eml"))
    assert parsed.text.endswith("Plain.")
    assert names(parsed) == ["a.pdf"]


def test_an_empty_plain_body_gives_way_to_the_html() -> None:
    composed = mail()
    composed.set_content(" \n")
    composed.add_alternative("<p>Rich</p>", subtype="html")
    assert parse_mail(File(composed.as_bytes(), "a.eml")).text.endswith("\n\nRich")


def test_a_forwarded_message_is_a_part_that_is_a_mail_again() -> None:
    inner = mail(Subject="Re: in/out Grüße", To="Bob <bob@example.org>")
    inner.set_content("Forwarded words.")
    inner.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="deep.pdf")
    outer = mail()
    outer.set_content("See below.")
    outer.add_attachment(inner)
    [part] = parse_mail(File(outer.as_bytes(), "a.eml")).parts
    assert (part.name, part.media_type) == ("Re: in-out Grüße.eml", "message/rfc822")
    again = parse_mail(File(part.data, part.name))
    assert "To: Bob <bob@example.org>" in again.text
    assert "Forwarded words." in again.text
    assert names(again) == ["deep.pdf"]


def test_signatures_are_left_out_and_noted() -> None:
    composed = mail()
    composed.set_content("Signed.")
    composed.add_attachment(b"0", maintype="application", subtype="pkcs7-signature", filename="smime.p7s")
    parsed = parse_mail(File(composed.as_bytes(), "a.eml"))
    assert parsed.parts == ()
    assert "smime.p7s" in parsed.receipt.notes[0]


def test_a_saved_page_stays_one_document() -> None:
    page = (
        "From-Nobody: x\nMIME-Version: 1.0\nContent-Type: multipart/related; boundary=b\n\n"
        "--b\nContent-Type: text/html\n\n<p>Words</p>\n--b\nContent-Type: text/css\nContent-Location: a.css\n\np {}\n"
        "--b\nContent-Type: image/png\nContent-Location: a.png\n\nx\n--b--\n"
    )
    parsed = parse_mail(File(page.encode(), "a.mhtml"))
    assert (parsed.text, parsed.parts, parsed.receipt.images_skipped) == ("Words", (), 1)


def test_each_message_of_a_mailbox_is_a_part() -> None:
    box = (
        b"\nFrom ada@example.org Mon Jun  1 04:28:28 2009\nSubject: one\n\nFirst.\n>From here at 10:30 on\n\n"
        b"From the sentence that begins so\n\nFrom bob@example.org Tue Jun  2 04:28:28 2009\r\n\r\nSecond.\r\n"
    )
    parsed = parse_mbox(File(box, "a.mbox"))
    assert names(parsed) == ["one.eml", "message.eml"]
    assert parsed.parts[0].data.endswith(b"First.\nFrom here at 10:30 on\n\nFrom the sentence that begins so\n\n")
    with pytest.raises(UnreadableDocument):
        parse_mbox(File(b"From here on, no message begins.", "a.mbox"))


SUBJECT, BODY, HTML, RTF, SENDER, ADDRESS, SENT = 0x0037, 0x1000, 0x1013, 0x1009, 0x0C1A, 0x5D01, 0x0039


def outlook(properties: dict, *items: tuple, page: int | None = None) -> Parsed:
    return parse_msg(File(compound(message(properties, *items, page=page)), "a.msg"))


def test_an_outlook_message_with_people_files_and_a_message_in_it() -> None:
    inner = message({SUBJECT: "Inner", BODY: "Inner words."}, attachment(0, "deep.txt", b"deep"), header=24)
    parsed = outlook(
        {
            SUBJECT: "Budget für März",
            BODY: "Please find it attached.\r\n",
            SENDER: "Löwe, Ada",
            ADDRESS: "ada@example.org",
            SENT: datetime(2025, 3, 1, 12, tzinfo=UTC),
        },
        recipient(0, "Bob", "bob@example.org"),
        recipient(1, "Eve", "/O=EXCHANGE/CN=EVE", role=2),
        attachment(0, "budget.xlsx", b"PK" * 3000),
        attachment(1, "logo.png", b"\x89PNG", cid="logo@1"),
        attachment(2, "Inner", inner),
    )
    assert parsed.text == (
        'Budget für März\n\nFrom: "Löwe, Ada" <ada@example.org>\nTo: Bob <bob@example.org>\nCc: Eve\n'
        "Date: Sat, 01 Mar 2025 12:00:00 +0000\nAttachments: budget.xlsx, Inner.eml\n\nPlease find it attached."
    )
    assert parsed.parts[0].data == b"PK" * 3000
    assert parsed.receipt.images_skipped == 1
    again = parse_mail(File(parsed.parts[1].data, "Inner.eml"))
    assert "Inner words." in again.text
    assert names(again) == ["deep.txt"]


@pytest.mark.parametrize(
    ("name", "address"), [("a <", ""), ("Ada [", ""), ("", "x@[1"), ("Ada", "x@[1"), ("Ada [1", "a@b.example")]
)
def test_an_outlook_message_with_broken_headers_is_read_all_the_same(name: str, address: str) -> None:
    parsed = outlook(
        {SUBJECT: "Broken", BODY: "Words.", SENDER: name, ADDRESS: address},
        recipient(0, name, address),
        attachment(0, "two\r\nlines.pdf", b"x", type="application/\npdf"),
    )
    assert parsed.text.endswith("Words.")
    assert parsed.parts[0].name == "two lines.pdf"
    assert ("x@[1" in address) == any("From is broken" in note for note in parsed.receipt.notes)


def test_an_outlook_message_in_an_old_encoding_or_as_html() -> None:
    assert outlook({SUBJECT: "測試", BODY: "中文測試"}, page=950).text == "測試\n\n中文測試"
    assert outlook({SUBJECT: "Page", HTML: "<p>Grüße</p>".encode()}).text == "Page\n\nGrüße"


def test_an_outlook_message_whose_text_is_not_read_says_so() -> None:
    assert "RTF" in (outlook({SUBJECT: "Rich", RTF: b"LZFu"}).receipt.needs_attention or "")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("test_outlook_msg.msg", "This is the body of the test email message"),
        ("testMSG_chinese.msg", "Search word testing by Lydia"),
        ("testRFC822_multipart_attachments.eml", "This is Test TXTA File for parser"),
        ("complex.mbox", "hadoop framework in protocol to indicate that map is done"),
    ],
)
def test_real_messages(name: str, sentence: str) -> None:
    path = CORPUS / name
    if not path.is_file():
        pytest.skip("the corpus ../shared/corpora/files is not on this machine")
    parser = {".msg": parse_msg, ".mbox": parse_mbox, ".eml": parse_mail}[path.suffix]
    parsed = parser(File(path.read_bytes(), name))
    texts = [parsed.text, *(part.data.decode("utf-8", "replace") for part in parsed.parts)]
    assert any(sentence in " ".join(text.split()) for text in texts)


# Out of the parser's process, into the file store


ROOM = Room(9, 999)


async def kept(files: Files, folder: Path, *parts: Part, room: Room = ROOM) -> list[Upload]:
    for number, part in enumerate(parts):
        (folder / str(number)).write_bytes(part.data)
    uploads: list[Upload] = []
    await keep_parts(uploads, parts, folder, files, {"year": 2025}, room)
    return uploads


async def test_kept_parts_have_clean_names_of_their_own_and_their_own_types(tmp_path: Path) -> None:
    files = Files(Folder(tmp_path))
    with files.scratch() as folder:
        parts = [Part("../a.txt", b"1"), Part("a.txt", b"2"), Part("a.txt", b"2"), Part("\0", b"3"), Part("p.exe", b"\x7fELF")]
        uploads = await kept(files, folder, *parts, Part("m", b"Subject: x\n\ny", "message/rfc822"))
    assert [upload.name for upload in uploads] == ["a.txt", "a (2).txt", "a (3).txt", "part", "p.exe", "m"]
    assert [upload.media_type for upload in uploads[3:]] == ["text/plain", UNKNOWN, MAIL]
    assert uploads[1].sha256 == uploads[2].sha256
    assert {upload.metadata["year"] for upload in uploads} == {2025}
    assert (await files.local("originals", uploads[0].sha256, tmp_path)).read_bytes() == b"1"
    assert not folder.exists()


async def test_parts_are_kept_while_there_is_room(tmp_path: Path) -> None:
    files = Files(Folder(tmp_path))
    parts = [Part("a.txt", b"12"), Part("b.txt", b"34"), Part("c.txt", b"5")]
    for room, count in ((Room(3, 5), 3), (Room(2, 5), 2), (Room(3, 3), 1), (Room(0, 0), 0)):
        with files.scratch() as folder:
            assert len(await kept(files, folder, *parts, room=room)) == count


async def test_parts_leave_the_process_as_files_and_the_scratch_folder_goes(tmp_path: Path) -> None:
    files = Files(Folder(tmp_path / "data"))
    composed = mail()
    composed.set_content("Body.")
    composed.add_attachment(bytes(3_000_000), maintype="application", subtype="octet-stream", filename="big.bin")
    path = tmp_path / "a.eml"
    path.write_bytes(composed.as_bytes())
    pool = ParserPool(workers=1)
    try:
        with files.scratch() as folder:
            parsed = await pool.parse(path, "a.eml", MAIL, folder)
            assert (folder / "0").read_bytes() == bytes(3_000_000)
        assert parsed.parts == (Part("big.bin", b"", "application/octet-stream"),)
        assert (await pool.parse(path, "a.eml", MAIL)).parts == parsed.parts
    finally:
        await pool.close()
    assert list((tmp_path / "data" / "incoming").iterdir()) == []


async def test_a_disk_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    files = Files(Folder(tmp_path))
    (tmp_path / "incoming").rmdir()
    with pytest.raises(ServiceError):
        await files.sweep()


async def test_what_a_killed_process_left_is_swept_away_after_a_day(tmp_path: Path) -> None:
    files = Files(Folder(tmp_path))
    old, new = tmp_path / "incoming" / "old", tmp_path / "incoming" / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "0").write_bytes(b"x")
    os.utime(old, (0, 0))
    await files.sweep()
    assert not old.exists()
    assert new.exists()
