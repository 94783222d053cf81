"""`from src.traces_utils.store import TraceStore`, as the usage document has it."""

from decision_traces import TraceStore

__all__ = ["TraceStore"]
