"""Arrays of a run as xarray sees them: labelled axes, values read when indexed."""

from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from decision_traces.schema import D_HEAD, D_MODEL, EXAMPLE
from decision_traces.store.arrays import StoredArray
from decision_traces.store.examples import Examples


class _LazyArray(BackendArray):
    """Hands basic slices to the guarded read of a `StoredArray`; xarray does the rest in memory."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._basic)

    def _basic(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read a basic selection: steps other than 1 are taken from the box that spans them."""
        box: list[slice] = []
        then: list[int | np.ndarray] = []
        for pick, size in zip(key, self.shape, strict=True):
            places = range(size)[pick] if isinstance(pick, slice) else [int(pick) % size]
            low, high = (min(places), max(places) + 1) if len(places) else (0, 0)
            box.append(slice(low, high))
            then.append(np.asarray(places, dtype=np.int64) - low if isinstance(pick, slice) else 0)
        values = self._array.read_box(tuple(box))
        for axis, places_in_box in reversed(list(enumerate(then))):
            if isinstance(places_in_box, int) or _steps(places_in_box):
                values = np.take(values, places_in_box, axis=axis)
        return values


def _steps(places: np.ndarray) -> bool:
    """Whether places are other than 0, 1, 2, …: a copy that most reads need not make."""
    return bool(len(places) and (places[0] != 0 or np.any(np.diff(places) != 1)))


def labelled(array: StoredArray, examples: Examples) -> xarray.DataArray:
    """Return one array of a run as a lazy DataArray; see `TraceStore.to_xarray`."""
    axes = array.spec.axes
    coords: dict[str, Any] = {
        axis: np.arange(size)
        for axis, size in zip(axes, array.shape, strict=True)
        if axis not in {EXAMPLE, D_HEAD, D_MODEL}
    }
    coords[EXAMPLE] = np.asarray(examples.ids, dtype=object if not examples.ids else None)
    coords["n_tokens"] = (axes[: examples.spans.n_tokens.ndim], examples.spans.n_tokens)
    variable = xarray.Variable(axes, indexing.LazilyIndexedArray(_LazyArray(array)))
    return xarray.DataArray(variable, coords=coords, name=array.spec.name)
