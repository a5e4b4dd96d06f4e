"""Blobs in a bucket of S3, or of what speaks its protocol: MinIO, Ceph, R2 and the like."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from ingest.blobs import Blob, gone
from ingest.blobs.folder import disk_errors
from retrieval.errors import ConfigurationError, DocumentNotFound, FilesRejected, FilesUnavailable, FootnoteError, StorageFull

if TYPE_CHECKING:  # the library's types exist for type checkers only
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig, S3Config

PIECE_BYTES = 1024 * 1024
PART_BYTES = 5 * 1024 * 1024
"""A larger file goes up in parts of this size, two at once; the least that S3 takes."""
KEYS_AT_ONCE = 1000
READ_SECONDS = 30
"""Longest wait for the next bytes, or for the answer to a request. A slow line must carry two parts in this time."""
CONNECT_SECONDS = 5
RETRY_SECONDS = 10
"""After so long a request is not tried again, so that a bucket which is away costs a caller seconds and not minutes."""
RETRY_AFTER = 5.0
PARAMETERS = {"endpoint", "region"}
FULL = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
KEY_NAME = re.compile(r"[0-9a-f]{64}")


def open_bucket(url: str, *, data_dir: Path, credentials: str | None = None) -> Bucket:
    """`s3://bucket/prefix?endpoint=http://host:9000&region=eu-central-1`.

    `credentials` are `KEY_ID:SECRET`; without them AWS's variables count, then the role of the machine.
    """
    parts = urlsplit(url)
    parameters = dict(parse_qsl(parts.query))
    if not parts.netloc or set(parameters) - PARAMETERS:
        raise ConfigurationError(f"{url!r} is not of the form s3://bucket/prefix?endpoint=http://host:9000&region=eu-central-1")
    key_id, colon, secret = (credentials or "").partition(":")
    if credentials and not (key_id and colon and secret):
        raise ConfigurationError("FOOTNOTE_FILES_CREDENTIALS is not of the form KEY_ID:SECRET")
    config: S3Config = {}
    if "endpoint" in parameters:
        config["endpoint"] = parameters["endpoint"]
    if "region" in parameters:
        config["region"] = parameters["region"]
    if credentials:
        config["access_key_id"], config["secret_access_key"] = key_id, secret
    return Bucket(parts.netloc, parts.path.strip("/"), config, data_dir / "incoming")


class Bucket:
    """Blobs as objects `<prefix>/<key>`. Retries and multipart uploads are the library's.

    Its calls that block, and not its coroutines: on the way out of a short-lived process these now and then abort it
    (docs/decisions/0010-files-in-a-bucket.md).
    """

    def __init__(self, bucket: str, prefix: str, config: S3Config, incoming: Path) -> None:
        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        self.incoming = incoming
        with disk_errors():
            incoming.mkdir(parents=True, exist_ok=True)
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": timedelta(days=1),  # of a whole download, which goes as slowly as its reader
        }
        if config.get("endpoint", "").startswith("http://"):
            client["allow_http"] = True
        retry: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
        self._store = S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)

    def keep(self, key: str, path: Path) -> None:
        with self._errors(FilesUnavailable(f"an upload to {self.place} was cut off", retry_after=RETRY_AFTER)):
            self._store.put(key, path, chunk_size=PART_BYTES, max_concurrency=2)

    def has(self, key: str) -> bool:
        try:
            with self._errors(gone(key)):
                self._store.head(key)
        except DocumentNotFound:
            return False
        return True

    def local(self, key: str, folder: Path) -> Path:
        path, digest = folder / "original", hashlib.sha256()
        pieces = self.pieces(key, 0, None)
        with disk_errors(), path.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != key.rpartition("/")[2]:
            raise FilesRejected(
                f"{self.place}/{key} holds other bytes than were stored there: remove it and upload the document again"
            )
        return path

    def pieces(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        if end is not None and end <= start:
            return iter(())
        options: GetOptions = {}
        if start or end is not None:  # of an empty object not even the range from its beginning may be asked for
            options["range"] = {"offset": start} if end is None else (start, end)
        with self._errors(gone(key)):
            found = self._store.get(key, options=options)

        def read() -> Iterator[bytes]:
            with self._errors(gone(key)):
                for piece in found.stream(PIECE_BYTES):
                    yield bytes(piece)

        return read()

    def remove(self, keys: Sequence[str]) -> None:
        with self._errors(gone(str(keys))):
            self._store.delete(keys)

    def pages(self, kind: str) -> Iterator[list[Blob]]:
        with self._errors(gone(kind)):
            for page in self._store.list(kind, chunk_size=KEYS_AT_ONCE):
                named = ((str(each["path"]).rpartition("/")[2], each["last_modified"]) for each in page)
                yield [Blob(name, modified.timestamp()) for name, modified in named if KEY_NAME.fullmatch(name)]

    def ping(self) -> str:
        """Ask for an object that is not there: of all requests the cheapest whose refusal says why."""
        with suppress(DocumentNotFound):
            self.pieces("ping", 0, 1)
        return self.place

    @contextmanager
    def _errors(self, missing: FootnoteError) -> Iterator[None]:
        """The library's exceptions as ours; `missing` where there is a bucket, but no such object or upload in it."""
        try:
            yield
        except FileNotFoundError as exc:
            raise self._translated(exc, missing) from exc
        except BaseError as exc:
            unknown = FilesUnavailable(f"{self.place} does not answer: {_short(exc)}", retry_after=RETRY_AFTER)
            raise self._translated(exc, unknown) from exc

    def _translated(self, exc: Exception, unknown: FootnoteError) -> FootnoteError:
        text = str(exc)
        found = re.search(r"<Code>(\w+)</Code>", text)
        code = found[1] if found else ""
        if code == "NoSuchBucket":
            return FilesRejected(f"there is no bucket for {self.place}: create it, or set FOOTNOTE_FILES_URL")
        if code in FULL:
            return StorageFull(f"{self.place} is full ({code}): free some room, or raise its quota")
        if isinstance(exc, PermissionDeniedError | UnauthenticatedError) or code in {"InvalidAccessKeyId", "AccessDenied"}:
            why = code or "AccessDenied"
            cure = "check FOOTNOTE_FILES_CREDENTIALS, and that the key may get, put, delete and list"
            return FilesRejected(f"{self.place} refuses our key ({why}): {cure}")
        if "/latest/api/token" in text or "/latest/meta-data" in text:  # where machines at AWS get a key, if they have one
            return FilesUnavailable(f"there is no key for {self.place}: set FOOTNOTE_FILES_CREDENTIALS or AWS's variables")
        return unknown


def _short(exc: Exception) -> str:
    return str(exc).partition("\n")[0].partition("Debug source")[0].strip()[:300]
