"""`import lancedb` without its client of remote catalogs, which an embedded store never calls.

That client is two hundred generated pydantic models: more than half of the import's 2.6 s of CPU, in each of our processes.
Import LanceDB through this module only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_CLIENT = "lance_namespace_urllib3_client"


class _StandIn(ModuleType):
    """A module that has any class one asks for, each of them empty."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (Exception,), {})
        setattr(self, name, found)  # the same on every import: LanceDB compares signatures
        return found


class _StandIns(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == _CLIENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it to run."""


if _CLIENT not in sys.modules:
    sys.meta_path.insert(0, _StandIns())

import lancedb  # noqa: E402
from lancedb.index import FTS, BTree, HnswSq  # noqa: E402
from lancedb.query import ColumnOrdering, FullTextOperator, MatchQuery  # noqa: E402

__all__ = ["FTS", "BTree", "ColumnOrdering", "FullTextOperator", "HnswSq", "MatchQuery", "lancedb"]
