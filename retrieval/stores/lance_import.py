"""`import lancedb` without what an embedded store never calls: its client of remote catalogs, and pandas.

That client is two hundred generated pydantic models, more than half of the import's 2.6 s of CPU in each of our processes;
pandas, which LanceDB asks for and can do without, is half of the rest, and 70 MB. On Python 3.11 a further third of what is
left is a package that checks at each decorated method what type checkers check; from 3.12 on LanceDB does without it too.
Import LanceDB through this module only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def _unchecked_overrides() -> Iterator[None]:
    try:
        import overrides
    except ModuleNotFoundError:  # from Python 3.12 on nobody needs it
        yield
        return
    names = vars(overrides)
    checked = {name: names[name] for name in ("override", "EnforceOverrides")}
    names.update(override=lambda method: method, EnforceOverrides=type("EnforceOverrides", (), {}))
    try:
        yield
    finally:
        names.update(checked)


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if fullname == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return None


if _CLIENT not in sys.modules:
    sys.meta_path.insert(0, _StandIns())
_no_pandas = _NoPandas()
sys.meta_path.insert(0, _no_pandas)
try:
    with _unchecked_overrides():
        import lancedb
        from lancedb.index import FTS, BTree, HnswSq
        from lancedb.query import ColumnOrdering, FullTextOperator, MatchQuery
finally:
    sys.meta_path.remove(_no_pandas)  # the rest of the process may have it

__all__ = ["FTS", "BTree", "ColumnOrdering", "FullTextOperator", "HnswSq", "MatchQuery", "lancedb"]
