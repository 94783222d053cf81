"""How did this transformer come to its decision? Run folders of traces, and the tools to read them.

    import decision_traces as dt

    run = dt.trace(model, tokenizer, texts, capture=["attn", "resid"])
    run.view()

Importing the package is quick and needs no torch: the names below are loaded when first used. What is not among them is
private, though it may be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from decision_traces._version import __version__

if TYPE_CHECKING:
    from decision_traces.api.run import Run, open_run
    from decision_traces.api.run import Run as TraceStore
    from decision_traces.api.trace import trace
    from decision_traces.errors import TraceError
    from decision_traces.model.discovery.probe import find_structure
    from decision_traces.tracing.edits import Edit
    from decision_traces.tracing.session import Session

__all__ = ["Edit", "Run", "Session", "TraceError", "TraceStore", "__version__", "find_structure", "open_run", "trace"]

_HOMES: Final = {
    "Edit": ("tracing.edits", "Edit"),
    "Run": ("api.run", "Run"),
    "Session": ("tracing.session", "Session"),
    "TraceError": ("errors", "TraceError"),
    "TraceStore": ("api.run", "Run"),
    "find_structure": ("model.discovery.probe", "find_structure"),
    "open_run": ("api.run", "open_run"),
    "trace": ("api.trace", "trace"),
}


def __getattr__(name: str) -> Any:
    """Load the module of a name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, own_name = _HOMES[name]
    return getattr(import_module(f"{__name__}.{home}"), own_name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
