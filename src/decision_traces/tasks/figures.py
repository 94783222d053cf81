"""Figures of the example list: one number an example, to filter and to sort by."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the list.

    Attributes:
        name: What the URL calls it.
        label: What it is called.
        unit: Unit, or empty.
        values: (n,) NaN where an example has none; of a category, the index of its name.
        categories: Names, where it is a category.
    """

    name: str
    label: str
    unit: str
    values: Float32[np.ndarray, " n"]
    categories: tuple[str, ...] | None = None

    def summary(self) -> dict[str, Any]:
        """Return what the page needs to draw a histogram's axis."""
        finite = self.values[np.isfinite(self.values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        return {
            "name": self.name,
            "label": self.label,
            "unit": self.unit,
            "min": low,
            "max": high,
            "known": len(finite),
            "categories": None if self.categories is None else list(self.categories),
        }


def numbers_of(column: pa.ChunkedArray) -> Float64[np.ndarray, " n"]:
    """Return a column as float64, NaN for nulls: from its bytes, because pyarrow's own way loads pandas for it."""
    array = pc.cast(column, pa.float64(), safe=False).combine_chunks()
    if array.null_count == len(array):
        return np.full(len(array), np.nan)
    here = slice(array.offset, array.offset + len(array))
    valid, values = array.buffers()
    numbers: np.ndarray = np.frombuffer(values, np.float64)[here]
    if valid is None:
        return numbers
    is_valid = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[here].astype(bool)
    return np.where(is_valid, numbers, np.nan)


def column_figure(table: pa.Table, column: str, name: str, label: str, unit: str = "") -> Figure:
    """Return a column of numbers as a figure."""
    return Figure(name, label, unit, numbers_of(table.column(column)).astype(np.float32))
