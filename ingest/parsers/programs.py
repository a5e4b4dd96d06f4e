"""Programs that read what no library of ours reads: where they are, and how one is run on a document."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from retrieval.errors import (
    DocumentTooLarge,
    FootnoteError,
    MissingProgram,
    ParseMemoryExceeded,
    ParseTimeout,
    UnreadableDocument,
)

STDOUT, _STDERR = "stdout", "stderr"
"""Files of the scratch folder that take what a program prints."""

_MAX_RESULT_BYTES = 200 * 1024 * 1024
_NO_MEMORY = ("bad_alloc", "heap overflow", "heap exhausted", "out of memory", "calloc fail", "malloc fail")
_LEADER = "read -r _; sleep 9"
"""What leads the process group of a program and of all that it starts, and holds its number until the guard has used it."""
_GUARD = 'read -r _; kill -KILL "-$1"; rm -rf -- "$0"'
"""Waits until we close its input, or until this process ends in whatever way, which closes it too; then the group ends, and
after it the scratch folder, which nobody writes to any more."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and the commands that install it."""

    title: str
    install: str


_PROGRAMS = {
    "tesseract": Program(
        "tesseract", "`apt-get install tesseract-ocr` on Debian and Ubuntu, `brew install tesseract` on macOS"
    ),
    "soffice": Program(
        "LibreOffice",
        "`apt-get install --no-install-recommends libreoffice-writer-nogui libreoffice-impress-nogui` on Debian and Ubuntu, "
        "`brew install --cask libreoffice` on macOS",
    ),
    "pandoc": Program("pandoc", "`pip install pypandoc-binary`"),
}


def find(program: str, name: str) -> str:
    """Where a program is; `name` is the document that needs it. Raises `MissingProgram`."""
    path = _packaged_pandoc() if program == "pandoc" else None
    path = path or shutil.which(program)
    if path is None:
        wanted = _PROGRAMS[program]
        raise MissingProgram(f"{name} is read by {wanted.title}, which is not installed. Install it with {wanted.install}.")
    return path


@cache
def _packaged_pandoc() -> str | None:
    package = find_spec("pypandoc")
    path = Path(package.origin).parent / "files" / "pandoc" if package and package.origin else None
    return str(path) if path and path.is_file() else None


@cache
def version(program: str) -> str:
    """Name and version, as a receipt shows them."""
    printed = run(program, ["--version"], name=program, files={}, result=STDOUT)
    return " ".join(printed.decode("utf-8", "replace").split()[:2])


def run(
    program: str, arguments: Sequence[str], *, name: str, files: Mapping[str, bytes], result: str, seconds: float = 600
) -> bytes:
    """Run a program in a scratch folder that holds `files`; what it leaves in the file `result` there.

    `name` is the document's. `seconds` is only a backstop, `ParserPool` has the wall time. Raises `MissingProgram`,
    `ParseTimeout`, `ParseMemoryExceeded`, `DocumentTooLarge` (the result), and `UnreadableDocument` when the program fails.
    """
    command = [find(program, name), *arguments]
    with _scratch() as (folder, group):
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        try:
            status = _wait(command, folder, group, seconds)
        except subprocess.TimeoutExpired as error:
            raise ParseTimeout(f"{name} could not be read within {seconds:g} s. Split it and upload the parts.") from error
        left = folder / result
        if status or not left.is_file():
            raise _failure(program, name, folder)
        if left.stat().st_size > _MAX_RESULT_BYTES:
            raise DocumentTooLarge(f"{name} has more text than a document may. Split it and upload the parts.")
        return left.read_bytes()


@contextmanager
def _scratch() -> Iterator[tuple[Path, int]]:
    """A folder and a process group; both end with the context, or with this process if that comes first."""
    folder = tempfile.mkdtemp(prefix="footnote-")
    with (
        _waiting("-c", _LEADER) as leader,
        _waiting("-c", _GUARD, folder, str(leader.pid)),  # left first, so that the leader is still there
    ):
        yield Path(folder), leader.pid


def _waiting(*arguments: str) -> subprocess.Popen[bytes]:
    """A shell in a group of its own; leaving its context closes its input."""
    return subprocess.Popen(["/bin/sh", *arguments], stdin=subprocess.PIPE, process_group=0)  # noqa: S603 - constant but for a folder


def _wait(command: Sequence[str], folder: Path, group: int, seconds: float) -> int:
    with (
        (folder / STDOUT).open("wb") as stdout,
        (folder / _STDERR).open("wb") as stderr,
        subprocess.Popen(  # noqa: S603 - a program of ours, never through a shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=_environment(folder),
            process_group=group,
        ) as process,
    ):
        try:
            return process.wait(seconds)
        except BaseException:
            process.kill()  # leaving the context waits for it
            raise


def _environment(folder: Path) -> dict[str, str]:
    """What a program needs and no more: it reads hostile files, and our environment holds keys."""
    kept = {key: os.environ[key] for key in ("PATH", "TESSDATA_PREFIX") if key in os.environ}
    return {**kept, "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", "OMP_THREAD_LIMIT": "1"}


def _failure(program: str, name: str, folder: Path) -> FootnoteError:
    said = (folder / _STDERR).read_bytes()[-4000:].decode("utf-8", "replace").replace(f"{folder}/", "")
    if any(sign in said.lower() for sign in _NO_MEMORY):
        return ParseMemoryExceeded(f"{name} needs more memory than a document may take. Split it and upload the parts.")
    reason = next((f" ({line.strip()[:200]})" for line in reversed(said.splitlines()) if line.strip()), "")
    return UnreadableDocument(
        f"{_PROGRAMS[program].title} could not read {name}{reason}. Open and save it again, then upload it."
    )
