"""How finely the numbers of a run were computed and stored."""

from typing import Final

from decision_traces.store import TraceStore

_EPSILON: Final = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def resolution(store: TraceStore) -> float:
    """Return the relative step between numbers of the coarsest type a run used: to compute, or to store."""
    types = (store.about.dtype or "float16", store.about.model_dtype or "float32")
    return max(_EPSILON.get(t, _EPSILON["float32"]) for t in types)
