"""Swapping is configuration: a table of strings from a scheme to "module:name", imported when first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from retrieval.errors import ConfigurationError, MissingDependency

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a scheme to the callable that opens a `T`."""

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self.table = dict(table)

    def load(self, scheme: str) -> Any:
        """The callable behind `scheme`.

        `ConfigurationError` lists the known schemes; `MissingDependency` names the package that is not installed.
        """
        target = self.table.get(scheme)
        if target is None:
            raise ConfigurationError(f"unknown {self.kind} {scheme!r}; known: {', '.join(sorted(self.table))}")
        module, _, name = target.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as exc:
            message = f"the {self.kind} {scheme!r} needs the package {exc.name!r}: pip install {exc.name}"
            raise MissingDependency(message) from exc
