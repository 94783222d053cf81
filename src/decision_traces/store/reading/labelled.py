"""Arrays of a run as xarray sees them: labelled axes, values read when indexed."""

from typing import Any, Final

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from decision_traces.format.stages import D_HEAD, D_MLP, D_MODEL, D_VALUE, EXAMPLE, VOCAB
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.reading.examples import Examples

_UNLABELLED: Final = frozenset({EXAMPLE, D_HEAD, D_VALUE, D_MODEL, D_MLP, VOCAB})


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
    axes, slots = array.spec.axes, array.slots(array.position_axis)
    coords: dict[str, Any] = {axis: np.asarray(array.numbers(axis)) for axis in axes if axis not in _UNLABELLED}
    coords[EXAMPLE] = np.asarray(examples.ids, dtype=object if not examples.ids else None)
    n_tokens = slots.spans.n_tokens
    coords["n_tokens"] = (axes[: n_tokens.ndim], n_tokens)
    if isinstance(slots.kept, tuple):
        coords[array.position_axis] = np.asarray(slots.kept)
    elif slots.kept != "all":
        del coords[array.position_axis]
        coords["token_position"] = ((*axes[: n_tokens.ndim], array.position_axis), slots.at())
    variable = xarray.Variable(axes, indexing.LazilyIndexedArray(_LazyArray(array)))
    return xarray.DataArray(variable, coords=coords, name=array.spec.name)
