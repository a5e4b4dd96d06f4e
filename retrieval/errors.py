"""Everything that can go wrong on purpose, as one small tree.

    FootnoteError                  code, retryable, message that says what to do
    ├── InvalidInput               the caller can mend it
    │   ├── InvalidFilter
    │   ├── InvalidCollectionName
    │   ├── EmptyDocument
    │   ├── UnsupportedDocument
    │   │   └── MissingProgram     names the command that installs it
    │   ├── DocumentTooLarge
    │   ├── UnreadableDocument
    │   ├── EncryptedDocument
    │   ├── ParseTimeout
    │   └── ParseMemoryExceeded
    ├── NotFound
    │   ├── CollectionNotFound
    │   ├── DocumentNotFound
    │   └── JobNotFound
    ├── Conflict
    │   ├── DimensionMismatch
    │   ├── EmbedderMismatch
    │   ├── IdempotencyConflict
    │   ├── JobNotCancellable
    │   └── NotYetVisible          retryable: a write that was asked for is still on its way
    ├── Overloaded                 retry_after seconds
    ├── DeadlineExceeded           retryable: the caller's time was over
    ├── QuotaExceeded              deleting, or a higher quota, makes room
    ├── Unauthorized
    ├── ConfigurationError         the operator can mend it
    │   └── MissingDependency      names the command that installs it
    └── ServiceError               another program failed us
        ├── StoreUnavailable       retryable
        │   ├── StoreGrpcUnavailable   its HTTP port answers, its gRPC port does not
        │   ├── StoreReadOnly      it takes no writes until its operator gave it room
        │   └── StoreFull          its disk is full
        ├── StoreRejected          retryable, as long as nobody knows why
        │   ├── StoreKeyRejected
        │   ├── StoreForbidden     the key is known, and lacks a permission
        │   ├── StoreIndexMissing  retryable: whoever writes again creates it first
        │   ├── StoreTooOld
        │   └── StoreLimitReached  a limit of its operator's: collections, tenants, objects, bytes of a message
        ├── EmbedderUnavailable    retryable
        ├── EmbedderRejected
        ├── ModelUnavailable       retryable (a language model)
        ├── ModelRejected
        ├── CatalogUnavailable     retryable
        ├── FilesUnavailable       retryable (originals and texts)
        ├── FilesRejected
        ├── BrokerUnavailable      retryable
        ├── ParserKilled           retryable: the process that read a file was killed from outside
        └── StorageFull

Adapters raise these from what their library raises. The tree knows nothing of HTTP or exit codes: `app.errors` does.
"""

from __future__ import annotations


class FootnoteError(Exception):
    """Base of all errors that we raise on purpose; `str(error)` says what happened and what to do."""

    code = "internal_error"
    retryable = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds after which a retry makes sense, when the other side told us."""


class InvalidInput(FootnoteError):
    code = "invalid_input"


class InvalidFilter(InvalidInput):
    code = "invalid_filter"


class InvalidCollectionName(InvalidInput):
    code = "invalid_collection_name"


class EmptyDocument(InvalidInput):
    code = "empty_document"


class UnsupportedDocument(InvalidInput):
    code = "unsupported_document"


class MissingProgram(UnsupportedDocument):
    """The program that reads this format is not installed here; the message carries the command that installs it."""

    code = "missing_program"


class DocumentTooLarge(InvalidInput):
    code = "document_too_large"


class UnreadableDocument(InvalidInput):
    """The bytes are not what they claim to be, or are broken."""

    code = "unreadable_document"


class EncryptedDocument(InvalidInput):
    code = "encrypted_document"


class ParseTimeout(InvalidInput):
    code = "parse_timeout"


class ParseMemoryExceeded(InvalidInput):
    code = "parse_memory_exceeded"


class NotFound(FootnoteError):
    code = "not_found"


class CollectionNotFound(NotFound):
    code = "collection_not_found"


class DocumentNotFound(NotFound):
    code = "document_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class Conflict(FootnoteError):
    code = "conflict"


class DimensionMismatch(Conflict):
    """A vector's length differs from the index's."""

    code = "dimension_mismatch"


class EmbedderMismatch(Conflict):
    """The index was built by another embedding model than the one in use."""

    code = "embedder_mismatch"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class JobNotCancellable(Conflict):
    code = "job_not_cancellable"


class NotYetVisible(Conflict):
    code = "not_yet_visible"
    retryable = True


class DeadlineExceeded(FootnoteError):
    code = "deadline_exceeded"
    retryable = True


class QuotaExceeded(FootnoteError):
    """The collection holds as many documents or bytes as it may."""

    code = "quota_exceeded"


class Overloaded(FootnoteError):
    code = "overloaded"
    retryable = True


class Unauthorized(FootnoteError):
    code = "unauthorized"


class ConfigurationError(FootnoteError):
    code = "configuration_error"


class MissingDependency(ConfigurationError):
    """A package or program is not installed; the message carries the command that installs it."""

    code = "missing_dependency"


class ServiceError(FootnoteError):
    code = "service_error"


class StoreUnavailable(ServiceError):
    code = "store_unavailable"
    retryable = True


class StoreGrpcUnavailable(StoreUnavailable):
    code = "store_grpc_unavailable"


class StoreReadOnly(StoreUnavailable):
    code = "store_read_only"


class StoreFull(StoreUnavailable):
    code = "store_full"


class StoreRejected(ServiceError):
    """The store answered, and refused what we sent, for a reason that we do not know: so it may well pass."""

    code = "store_rejected"
    retryable = True


class StoreKeyRejected(StoreRejected):
    code = "store_key_rejected"
    retryable = False


class StoreForbidden(StoreRejected):
    code = "store_forbidden"
    retryable = False


class StoreIndexMissing(StoreRejected):
    """What is written to is not there, or not yet on the node that was asked."""

    code = "store_index_missing"


class StoreTooOld(StoreRejected):
    code = "store_too_old"
    retryable = False


class StoreLimitReached(StoreRejected):
    code = "store_limit_reached"
    retryable = False


class EmbedderUnavailable(ServiceError):
    code = "embedder_unavailable"
    retryable = True


class EmbedderRejected(ServiceError):
    code = "embedder_rejected"


class ModelUnavailable(ServiceError):
    code = "model_unavailable"
    retryable = True


class ModelRejected(ServiceError):
    code = "model_rejected"


class CatalogUnavailable(ServiceError):
    code = "catalog_unavailable"
    retryable = True


class FilesUnavailable(ServiceError):
    """The folder or bucket of originals and texts cannot be reached."""

    code = "files_unavailable"
    retryable = True


class FilesRejected(ServiceError):
    """The bucket answered, and does not let us in or does not exist."""

    code = "files_rejected"


class BrokerUnavailable(ServiceError):
    code = "broker_unavailable"
    retryable = True


class ParserKilled(ServiceError):
    code = "parser_killed"
    retryable = True


class StorageFull(ServiceError):
    code = "storage_full"
    retryable = True
