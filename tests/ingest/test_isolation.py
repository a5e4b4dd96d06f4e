from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from pebble import ProcessExpired
from PIL import Image

from ingest.parsers import HEAD_BYTES, Parsed, detect
from ingest.parsers.isolation import ParserPool
from ingest.parsers.media import HTML, PDF, PNG, TEXT
from ingest.parsers.sandbox import has_network
from retrieval.errors import FootnoteError, Overloaded, ParseMemoryExceeded, ParserKilled, ParseTimeout, UnreadableDocument
from tests.ingest.programs import require

GENERATOR = Path(__file__).parents[3] / "shared" / "corpora" / "hostile" / "gen_hostile.py"
MB = 1024 * 1024
SLOW = b"<html><body>" + b"<b><i><p>unclosed " * 400_000
"""Takes minutes: every tag nests in all those before it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ParserPool]:
    pool = ParserPool(workers=1, timeout_seconds=30, memory_bytes=256 * MB)
    await pool.warm()
    yield pool
    await pool.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def crashing_pdf() -> bytes:
    """96 MB of letters on one page: the library ends the process when memory runs out."""
    content = zlib.compress(b"BT /F1 1 Tf " + b"(AAAAAAAA) Tj " * 6_000_000 + b" ET", 1)
    return (
        b"%%PDF-1.7\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Kids[3 0 R]/Count 1>>\nendobj\n"
        b"3 0 obj\n<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>\nendobj\n"
        b"4 0 obj\n<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream\nendobj\n"
        b"5 0 obj\n<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>\nendobj\ntrailer\n<</Root 1 0 R>>\n"
        % (len(content), content)
    )


async def works(pool: ParserPool, folder: Path) -> bool:
    parsed = await pool.parse(write(folder, "after.txt", b"still here"), "after.txt", TEXT)
    return parsed.text == "still here"


async def test_a_document_crosses_the_border_whole(pool: ParserPool, tmp_path: Path) -> None:
    parsed = await pool.parse(write(tmp_path, "a.md", b"# Head\n\nbody"), "a.md", "text/markdown")
    assert isinstance(parsed, Parsed)
    assert parsed.text == "Head\n\nbody"
    assert parsed.receipt.media_type == "text/markdown"


async def test_our_errors_cross_it_unchanged(pool: ParserPool, tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument, match=r"^broken\.pdf is a damaged PDF") as caught:
        await pool.parse(write(tmp_path, "broken.pdf", b"%PDF-1.7\n"), "broken.pdf", PDF)
    assert caught.value.code == "unreadable_document"
    assert caught.value.message == str(caught.value)


async def test_a_parse_that_hangs_is_killed_and_others_go_on(tmp_path: Path) -> None:
    pool = ParserPool(workers=1, timeout_seconds=1.5)
    try:
        await pool.warm()
        started = time.monotonic()
        with pytest.raises(ParseTimeout, match=r"within 1\.5 s"):
            await pool.parse(write(tmp_path, "slow.html", SLOW), "slow.html", HTML)
        assert time.monotonic() - started < 8
        assert await works(pool, tmp_path)
    finally:
        await pool.close()


async def test_a_parse_that_eats_memory_ends_cleanly_and_others_go_on(pool: ParserPool, tmp_path: Path) -> None:
    hungry = write(tmp_path, "hungry.json", b"[" + b"[]," * 6_000_000 + b"1]")  # 18 MB on disk, 400 MB as objects
    with pytest.raises(ParseMemoryExceeded, match="more memory"):
        await pool.parse(hungry, "hungry.json", "application/json")
    assert await works(pool, tmp_path)


async def test_a_file_that_crashes_its_parser_is_unreadable_and_others_go_on(pool: ParserPool, tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument, match="crash"):
        await pool.parse(write(tmp_path, "crash.pdf", crashing_pdf()), "crash.pdf", PDF)
    assert await works(pool, tmp_path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_parser_that_is_killed_from_outside_says_nothing_of_the_file(
    pool: ParserPool, tmp_path: Path, how: signal.Signals
) -> None:
    parser = await pool._run(os.getpid)
    parsing = asyncio.create_task(pool.parse(write(tmp_path, "slow.html", SLOW), "slow.html", HTML))
    await asyncio.sleep(1)
    os.kill(parser, how)
    with pytest.raises(ParserKilled, match="killed from outside") as caught:
        await parsing
    assert caught.value.retryable
    assert await works(pool, tmp_path)


async def test_a_lock_that_a_killed_process_held_is_not_waited_for(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ingest.parsers.isolation._STUCK_SECONDS", 3.0)
    pool = ParserPool(workers=1)
    try:
        await pool.warm()
        assert pool._pool is not None
        assert pool._pool._pool_manager.worker_manager.workers_channel.mutex.acquire(timeout=5)
        began = time.monotonic()
        assert await works(pool, tmp_path)
        assert time.monotonic() - began < 30
    finally:
        await pool.close()


async def test_no_task_waits_for_ever_where_all_processes_are_killed_again_and_again(tmp_path: Path) -> None:
    pool, file = ParserPool(workers=2), write(tmp_path, "a.txt", b"a beacon blinks")
    try:
        await pool.warm()
        parses = [asyncio.create_task(pool.parse(file, "a.txt", TEXT)) for _ in range(200)]
        for _ in range(5):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it is dead already
                    if "forkserver" in " ".join(child.cmdline()):  # and what it forked; not the resource tracker, which warns
                        child.kill()
            await asyncio.sleep(0.3)
        async with asyncio.timeout(100):
            ends = await asyncio.gather(*parses, return_exceptions=True)
        assert {type(end) for end in ends} <= {Parsed, ParserKilled}
        assert await works(pool, tmp_path)
    finally:
        await pool.close()


async def test_cancelling_kills_the_parse(pool: ParserPool, tmp_path: Path) -> None:
    task = asyncio.create_task(pool.parse(write(tmp_path, "slow.html", SLOW), "slow.html", HTML))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    started = time.monotonic()
    assert await works(pool, tmp_path)
    assert time.monotonic() - started < 8


async def test_the_pool_survives_the_death_of_its_idle_processes(pool: ParserPool, tmp_path: Path) -> None:
    os.kill(await pool._run(os.getpid), signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert await works(pool, tmp_path)


async def test_workers_lead_a_session_and_load_no_heavy_libraries(pool: ParserPool) -> None:
    pid = await pool._run(os.getpid)
    assert os.getsid(pid) == pid
    for module in ("torch", "spacy", "fastapi", "langchain"):
        assert not await pool._run(eval, f"{module!r} in __import__('sys').modules")


SLEEP = """
from ingest.parsers.programs import run
run("sh", ["-c", "sleep 1000 & sleep 1000"], name="sleep", files={}, result="none")
"""
"""Starts a program, which starts another."""


def programs_of(parser: int) -> list[psutil.Process]:
    """What lives in the session of a parser process besides that process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if process.pid != parser and os.getsid(process.pid) == parser and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def until(condition: Callable[[], bool]) -> bool:
    for _ in range(100):
        if condition():
            return True
        await asyncio.sleep(0.1)
    return False


async def sleeping(pool: ParserPool) -> tuple[int, asyncio.Task[None]]:
    """A parser process whose program sleeps, and the task that waits for it."""
    parser = await pool._run(os.getpid)
    task = asyncio.create_task(pool._run(exec, SLEEP))
    assert await until(lambda: sum(each.name() == "sleep" for each in programs_of(parser)) == 2)
    return parser, task


async def test_a_parse_that_is_cancelled_takes_its_programs_with_it(pool: ParserPool) -> None:
    parser, task = await sleeping(pool)
    task.cancel()
    assert await until(lambda: not programs_of(parser))


async def test_a_parser_that_crashes_takes_its_programs_and_their_files_with_it(pool: ParserPool) -> None:
    parser, task = await sleeping(pool)
    held = {Path(each.cwd()) for each in programs_of(parser) if each.name() == "sleep"}
    os.kill(parser, signal.SIGKILL)
    with pytest.raises(ProcessExpired):
        await task
    assert await until(lambda: not programs_of(parser))
    assert len(held) == 1
    assert not any(folder.exists() for folder in held)


async def test_a_parse_that_is_too_slow_takes_its_program_with_it_and_so_does_closing(tmp_path: Path) -> None:
    require("tesseract")
    noise = tmp_path / "noise.png"
    Image.effect_noise((4000, 4000), 200).save(noise)
    pool = ParserPool(workers=1, timeout_seconds=3)
    try:
        parser = await pool._run(os.getpid)
        task = asyncio.create_task(pool.parse(noise, noise.name, PNG))
        assert await until(lambda: any(each.name() == "tesseract" for each in programs_of(parser)))
        with pytest.raises(ParseTimeout):
            await task
        assert await until(lambda: not programs_of(parser))
        parser, task = await sleeping(pool)
    finally:
        await pool.close()
    with pytest.raises(Overloaded):
        await task
    assert await until(lambda: not programs_of(parser))


async def test_a_process_that_keeps_much_memory_is_replaced(pool: ParserPool) -> None:
    first = await pool._run(os.getpid)
    assert await pool._run(os.getpid) == first
    await pool._run(exec, f"import sys; sys.kept = b'x' * {300 * MB}")
    assert await pool._run(os.getpid) != first


LEAVE_NETWORK = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x50000000) and ctypes.CDLL(None).unshare(0x40000000))"


async def test_parsers_have_no_network(pool: ParserPool) -> None:
    if sys.platform != "linux" or subprocess.run([sys.executable, "-c", LEAVE_NETWORK], check=False).returncode:
        pytest.skip("this system does not let a process leave the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).close()"
        exec(connect)
        assert has_network()
        assert not await pool.has_network()
        with pytest.raises(OSError, match="unreachable"):
            await pool._run(exec, connect)


async def test_a_closed_pool_says_so_and_closing_twice_is_fine(tmp_path: Path) -> None:
    pool = ParserPool(workers=1)
    await pool.close()
    await pool.close()
    with pytest.raises(Overloaded, match="stopping"):
        await pool.warm()


async def test_closing_ends_running_and_waiting_parses(tmp_path: Path) -> None:
    pool = ParserPool(workers=1)
    await pool.warm()
    slow = write(tmp_path, "slow.html", SLOW)
    tasks = [asyncio.create_task(pool.parse(slow, "slow.html", HTML)) for _ in range(2)]
    await asyncio.sleep(0.5)
    await pool.close()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(each) for each in found] == [Overloaded, Overloaded]


PARENT = f"""
import asyncio, psutil
from ingest.parsers.isolation import ParserPool

SLEEP = {SLEEP!r}

print("imported as", __name__, flush=True)

async def main():
    pool = ParserPool(workers=2)
    await pool.warm()
    sleeper = asyncio.create_task(pool._run(exec, SLEEP))
    while sum(each.name() == "sleep" for each in psutil.Process().children(recursive=True)) < 2:
        await asyncio.sleep(0.1)
    print("ready", flush=True)
    await sleeper

if __name__ == "__main__":
    asyncio.run(main())
"""


def kill_a_service(tmp_path: Path) -> tuple[list[str], list[psutil.Process], list[psutil.Process]]:
    """What it printed, its processes, and those still there afterwards."""
    script = write(tmp_path, "footnote", PARENT.encode())  # like a console script: no .py, imports what it likes
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        printed = [parent.stdout.readline().strip(), parent.stdout.readline().strip()]
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    return printed, children, [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


async def test_killing_the_service_leaves_no_process_behind(tmp_path: Path) -> None:
    printed, children, left = await asyncio.to_thread(kill_a_service, tmp_path)
    assert printed == ["imported as __main__", "ready"]  # and not again by its workers
    assert len(children) >= 7  # with a guard, a shell and two sleepers
    assert left == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if not GENERATOR.is_file():
        pytest.skip("the corpus ../shared/corpora/hostile is not on this machine")
    folder = tmp_path_factory.mktemp("hostile")
    subprocess.run([sys.executable, str(GENERATOR), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return sorted(path for path in folder.iterdir() if path.suffix != ".tsv")


def kind(path: Path) -> str:
    data = path.read_bytes()
    return detect(path.name, data[:HEAD_BYTES], len(data))


async def outcome(pool: ParserPool, path: Path) -> tuple[str, str]:
    """What became of a file, and its text."""
    try:
        parsed = await pool.parse(path, path.name, kind(path))
    except FootnoteError as error:
        return error.code, str(error)
    assert all(parsed.text[block.start : block.end] == block.text for block in parsed.blocks)
    return ("needs_attention" if parsed.receipt.needs_attention else "ok"), parsed.text or str(parsed.parts)


ANSWERED = {
    "control_small.pdf": "This is a small valid PDF used as a control.",
    "control_small.docx": "This is a small valid DOCX used as a control.",
    "UPPER.PDF": "small valid PDF",
    "pdf_named.txt": "small valid PDF",
    "docx_named.xlsx": "I am a Word file",
    "noext": "Plain text without any extension.",
    "null_bytes.txt": "beforeafter and",
    "utf16_nobom.txt": "UTF-16 little endian without a byte-order mark.",
    "million_newlines.txt": "needle at the end",
    "deep_div.html": "deep text",
    "xss.html": "Ordinary sentence in the page.",
    "hidden_text.html": "Visible statement.",
    "frontmatter_bomb.md": "Body text.",
    "lines.jsonl": "another ok line",
    "nested_mime.eml": "innermost body text",
    "long_header.eml": "body after a long header",
    "huge_mediabox.pdf": "text on a page of 2 billion points",
    "xxe.epub": "chapter",
    "remote_template.docx": "Document with a remote template and image.",
    "inj_white.docx": "4,812 parish registers",
}
REFUSED = {
    "empty_document": ["whitespace.txt", "bom_only.txt", "empty.pdf", "empty.docx", "empty.csv", "xinclude.xml"],
    "document_too_large": [
        "bomb.docx",
        "bomb.xlsx",
        "bomb_1GB.zip",
        "many_members.zip",
        "pixel_bomb.png",
        "many_paragraphs.docx",
        "page_loop.pdf",
        "same_page_100k.pdf",
        "many_parts.eml",
    ],
    "unsupported_document": [
        "elf_named.txt",
        "zip_named.docx",
        "double.pdf.exe",
        "links.tar",
        "bomb.txt.gz",
    ],
    "unreadable_document": [
        "truncated.docx",
        "truncated.xlsx",
        "header_only.pdf",
        "one_byte.pdf",
        "billion_laughs.xml",
        "billion_laughs.docx",
        "traversal.epub",
        "bomb_nested.zip",
    ],
    "needs_attention": ["control_chars.txt", "double_flate.pdf", "png_named.pdf"],
}
NEVER = ("root:", "COMMENT-BETA", "STYLE-EPSILON", "SCRIPT-ZETA", "HIDDEN-INSTRUCTION")


async def test_hostile_files_end_in_time_with_an_honest_status(hostile: list[Path]) -> None:
    require("tesseract")
    pool = ParserPool(workers=2, timeout_seconds=30, memory_bytes=512 * MB)
    gate = asyncio.Semaphore(2)

    async def one(path: Path) -> tuple[str, str]:
        async with gate:
            return await outcome(pool, path)

    try:
        found = dict(zip([path.name for path in hostile], await asyncio.gather(*map(one, hostile)), strict=True))
    finally:
        await pool.close()
    assert {name: found[name][1] for name, text in ANSWERED.items() if text not in found[name][1]} == {}
    assert {name: found[name] for status, names in REFUSED.items() for name in names if found[name][0] != status} == {}
    assert [name for name, (status, text) in found.items() if status == "ok" and not text.strip()] == []
    assert [name for name, (status, text) in found.items() if status == "ok" and any(word in text for word in NEVER)] == []
    assert [name for name, (status, _) in found.items() if status == "parse_timeout"] == []
