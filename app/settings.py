"""Settings: read once at start from the environment and `footnote.toml`. Nothing below `app` sees them."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from ingest.brokers import BROKERS
from retrieval.errors import ConfigurationError

PREFIX = "FOOTNOTE_"
FILE = "footnote.toml"
CLIENT_KEYS = {"FOOTNOTE_URL", "FOOTNOTE_API_KEY", "FOOTNOTE_CONFIG"}
"""Read by the CLI as a client of a running service; they are not settings of the service."""
TEST_PREFIX = "FOOTNOTE_TEST_"

MIB = 1024 * 1024
DAY_SECONDS = 86_400


class Settings(BaseModel):
    """What an operator may choose. Every field is `FOOTNOTE_<NAME>` in the environment and `<name>` in `footnote.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data_dir: Path = Field(Path("data/var"), description="originals, texts, embedded store, SQLite catalog, model cache")
    models_dir: Path | None = Field(None, description="where models are kept; unset for `models` in the data dir")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    workers: int = Field(
        1, ge=0, le=64, description="local worker processes started by `serve`; 0 where `footnote worker` runs elsewhere"
    )

    web_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that answer requests on the port; `max_queries` and `query_cache_mb` are each one's",
    )

    store_url: str = Field(
        "lance:",
        description="`lance:` (in the data dir), `lance:/folder`, `weaviate://host:8080?grpc=50051`, `weaviates://host`; "
        "several hosts with commas, `&replicas=3&consistency=quorum`",
    )
    store_api_key: SecretStr | None = Field(None, description="API key of the vector store")
    catalog_url: str = Field(
        "", description="empty for SQLite in the data dir, or `postgresql+asyncpg://user:password@host/database`"
    )
    files_url: str = Field(
        "",
        description="originals and texts: empty for the data dir, `file:/folder`, "
        "or `s3://bucket/prefix?endpoint=http://host:9000&region=eu-central-1`",
    )
    files_credentials: SecretStr | None = Field(
        None, description="`KEY_ID:SECRET` for the bucket; unset for AWS's variables or the machine's role"
    )
    broker_url: str = Field(
        "local:",
        description="what wakes workers: `local:` (no server), `redis://host:6379/0`, `amqp://user:password@host/`; "
        "with TLS `rediss://`, `amqps://`",
    )

    embedder: str = Field(
        "local:sentence-transformers/all-MiniLM-L6-v2",
        description="`local:<hub id or folder>`, `local:…?precision=int8`, or `openai:<model>` for any OpenAI-like server",
    )
    embedder_engine: Literal["auto", "openvino", "torch"] = Field(
        "auto", description="what computes a local model: `auto` is OpenVINO where it can, else `torch`, which also uses a GPU"
    )
    embedder_base_url: str | None = Field(None, description="base URL of the OpenAI-compatible embedding server, with its /v1")
    embedder_api_key: SecretStr | None = Field(None, description="API key of the embedding server")
    embedding_cache_mb: int = Field(
        512, ge=0, description="disk for vectors of texts embedded before, so that only new text is computed; 0 keeps none"
    )

    llm: str = Field(
        "extractive",
        description="`extractive`, or `<provider>:<model>` as LangChain takes it; several, with commas, are a fallback chain",
    )
    llm_base_url: str | None = Field(None, description="base URL of an OpenAI-compatible chat server, with its /v1")
    llm_api_key: SecretStr | None = Field(None, description="API key of the chat server")
    llm_window: int = Field(8192, ge=512, description="tokens of prompt and answer together that the model takes")
    llm_max_tokens: int = Field(800, ge=16, description="longest answer in tokens")
    llm_timeout_seconds: float = Field(120, gt=0, description="longest wait for a model's next piece of text")

    api_keys_required: bool | None = Field(
        None, description="ask every caller for a key; unset means: only where the address is not loopback"
    )
    api_keys: SecretStr | None = Field(
        None, description="the keys that are accepted, separated by commas; sent as `Authorization: Bearer <key>`"
    )

    chunk_size: int = Field(
        0,
        ge=0,
        le=8192,
        description="tokens per chunk of new collections, titles in front of it not counted; 0 for 160, or the model's window "
        "where that is less",
    )
    chunk_overlap: int = Field(0, ge=0, le=1024, description="tokens that neighbouring chunks of new collections share")
    chunk_context: bool = Field(
        True, description="embed each chunk of new collections with the titles above it and its table's header"
    )

    collection_max_documents: int = Field(0, ge=0, description="most documents of a new collection, parts too; 0 for no limit")
    collection_max_mb: int = Field(0, ge=0, description="most MiB that documents of a new collection have; 0 for no limit")

    max_file_mb: int = Field(100, ge=1, description="largest single document")
    max_request_mb: int = Field(500, ge=1, description="largest request body")
    max_question_chars: int = Field(8000, ge=1, description="longest question")
    max_queries: int = Field(64, ge=1, description="searches at once, for questions of all kinds; more wait")
    max_waiting_queries: int = Field(2000, ge=0, description="questions that may wait; more are answered 503 with Retry-After")
    max_query_seconds: float = Field(300, gt=0, description="longest time that one question may take, its wait included")
    max_queued_jobs: int = Field(20_000, ge=1, description="jobs that may wait; then uploads are answered 503 with Retry-After")
    min_free_disk_mb: int = Field(
        500, ge=0, description="free disk below which uploads are refused with 507 and workers pause; questions go on"
    )
    query_cache_mb: int = Field(
        16,
        ge=0,
        description="memory for results of `/search` and extractive answers, each current to the last write; 0 for none",
    )
    parse_timeout_seconds: float = Field(120, gt=0, description="longest time one file may take to parse")
    parse_memory_mb: int = Field(1024, ge=128, description="memory that parsing one file may add")
    html: Literal["main", "full"] = Field(
        "main", description="of a web page that is an article: its main text, or also navigation, footers and other frame"
    )
    ocr_languages: str = Field(
        "eng",
        pattern=r"^[A-Za-z_]+(\+[A-Za-z_]+)*$",
        description="languages of scanned pages and images, as tesseract names them: `eng+deu`",
    )
    ingest_concurrency: int = Field(
        4,
        ge=1,
        le=64,
        description="lots of documents that one worker process works on at once: a large document, or up to 32 small ones",
    )
    worker_cores: int = Field(
        0, ge=0, description="cores that local workers and their parsers use together; 0 for all, at low priority"
    )
    job_max_attempts: int = Field(8, ge=1, description="tries before a job is dead")
    lease_seconds: float = Field(30, ge=1, description="time after which a silent worker's job goes to another")
    drain_seconds: float = Field(
        20,
        ge=0,
        description="time that running jobs and streamed answers get to end when told to stop; unfinished jobs are given back",
    )

    webhook_url: str | None = Field(
        None, pattern=r"^https?://", description="is told of every document that is settled or deleted, signed and retried"
    )
    webhook_secret: SecretStr | None = Field(
        None, description="key of the signature, as Standard Webhooks has it: `whsec_` and base64, or any text"
    )

    reconcile_minutes: float = Field(
        15,
        ge=0,
        description="time between two comparisons of the store with the catalog, which repair what differs; 0 turns them off",
    )

    history_days: float = Field(
        30, ge=0, description="time for which ended jobs, Idempotency-Keys and undelivered notices are kept; 0 for ever"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe message that is logged")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is console on a terminal and JSON elsewhere"
    )

    @field_validator("llm")
    @classmethod
    def _llm_is_known_form(cls, value: str) -> str:
        for name in value.split(","):
            if name.strip() != "extractive" and ":" not in name:
                raise ValueError(
                    f"{name.strip()!r} is neither `extractive` nor `<provider>:<model>`, for example openai:gpt-4o-mini"
                )
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_is_known(cls, value: str) -> str:
        scheme, colon, _ = value.partition(":")
        if not colon or scheme not in BROKERS.table:
            raise ValueError(f"{scheme!r} is none of the known brokers: {', '.join(f'{known}:' for known in BROKERS.table)}")
        return value

    @model_validator(mode="after")
    def _open_addresses_need_keys(self) -> Settings:
        if self.api_keys_required is None and not self.is_loopback and not self.keys:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set FOOTNOTE_API_KEYS, "
                "or say FOOTNOTE_API_KEYS_REQUIRED=false to serve without keys"
            )
        if self.api_keys_required and not self.keys:
            raise ValueError("api_keys_required is true but FOOTNOTE_API_KEYS holds no key")
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Settings:
        if self.webhook_url and not (self.webhook_secret and self.webhook_secret.get_secret_value()):
            raise ValueError("webhook_url is set without FOOTNOTE_WEBHOOK_SECRET: what is not signed can be forged by anybody")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        text = self.api_keys.get_secret_value() if self.api_keys else ""
        return tuple(key.strip() for key in text.split(",") if key.strip())

    @property
    def asks_for_keys(self) -> bool:
        return self.api_keys_required if self.api_keys_required is not None else bool(self.keys)

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def resolved_store_url(self) -> str:
        return f"lance:{self.data_dir.resolve() / 'lance'}" if self.store_url in {"lance:", "lance"} else self.store_url

    @property
    def resolved_files_url(self) -> str:
        return self.files_url or f"file:{self.data_dir.resolve()}"

    @property
    def resolved_broker_url(self) -> str:
        return f"local:{self.data_dir.resolve() / 'wake'}" if self.broker_url == "local:" else self.broker_url

    @property
    def resolved_models_dir(self) -> Path:
        return (self.models_dir or self.data_dir / "models").resolve()

    @property
    def resolved_catalog_url(self) -> str:
        return self.catalog_url or f"sqlite+aiosqlite:///{self._catalog_file}"

    @property
    def _catalog_file(self) -> Path:
        return self.data_dir.resolve() / "catalog.sqlite"

    def require_data(self) -> None:
        """Who only wants to look must not make an empty catalog. Raises `ConfigurationError` if there is none yet."""
        if not self.catalog_url and not self._catalog_file.exists():
            raise ConfigurationError(
                f"there is nothing yet in the data dir {self.data_dir.resolve()}: begin with `footnote ingest FILE` or "
                "`footnote serve`, or name the folder that you mean with FOOTNOTE_DATA_DIR; most verbs also take a "
                "running service by --url"
            )


@dataclass(frozen=True)
class Loaded:
    """Settings with the place that each value came from: `default`, `environment` or the file's name."""

    settings: Settings
    sources: Mapping[str, str]


def load_settings(env: Mapping[str, str] | None = None, *, folder: Path | None = None, **overrides: Any) -> Loaded:
    """Read `footnote.toml` in `folder` (or `FOOTNOTE_CONFIG`), the environment, then `overrides` (command line; None is unset).

    Raises `ConfigurationError` with one line that names the key, what is wrong with its value, and what is allowed.
    """
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = Path(env["FOOTNOTE_CONFIG"]) if "FOOTNOTE_CONFIG" in env else (folder or Path()) / FILE
    for source, found in ((path.name, _from_file(path, required="FOOTNOTE_CONFIG" in env)), ("environment", _from_env(env))):
        values.update(found)
        sources.update(dict.fromkeys(found, source))
    given = {key: value for key, value in overrides.items() if value is not None}
    values.update(given)
    sources.update(dict.fromkeys(given, "command line"))
    try:
        settings = Settings(**values)
    except ValidationError as exc:
        raise ConfigurationError(_explain(exc, sources)) from None
    return Loaded(settings, {name: sources.get(name, "default") for name in Settings.model_fields})


def _from_file(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.exists():
        if required:
            raise ConfigurationError(f"FOOTNOTE_CONFIG names {path}, which does not exist")
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
        raise ConfigurationError(f"{path}: {exc}") from exc


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    return {
        key.removeprefix(PREFIX).lower(): value
        for key, value in env.items()
        if key.startswith(PREFIX) and key not in CLIENT_KEYS and not key.startswith(TEST_PREFIX)
    }


def _explain(exc: ValidationError, sources: Mapping[str, str]) -> str:
    error = exc.errors(include_url=False)[0]
    key = str(error["loc"][0]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown setting; known: {', '.join(sorted(Settings.model_fields))}"
    where = f" (from {sources[key]})" if key in sources else ""
    shown = "" if not key or _is_secret(key) else f"={hide_password(json.dumps(error.get('input'), default=str))}"
    return f"{PREFIX}{key.upper()}{shown}{where}: {message}" if key else message


def hide_password(text: str) -> str:
    """The text without the password of a URL in it."""
    return re.sub(r"(://[^:/\s]*:)\S*@", r"\1***@", text)


def _is_secret(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and "SecretStr" in str(field.annotation)
