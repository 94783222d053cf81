"""How did this transformer come to its decision? Run folders of traces, and the tools to read them.

Importing the package is quick and needs no torch: the names below are loaded when first used.
"""

from typing import TYPE_CHECKING, Any

from decision_traces._version import __version__

if TYPE_CHECKING:
    from decision_traces.store import TraceStore, open_run

__all__ = ["TraceStore", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    """Load the reader on first use (PEP 562)."""
    if name in {"TraceStore", "open_run"}:
        from decision_traces import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
