"""Zarr arrays as anybody writes them: one a kind, a chunk for each example and layer, the library's defaults."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from benchmarks.contenders.batches import Batch
from benchmarks.contenders.protocol import Read

PREDICTIONS = "next_pred_id"


class ZarrArrays:
    """A Zarr group that grows by one batch at a time.

    Every array is (example, layer, ...) in float16, T long on its token axes; `embed` has no layer.
    """

    def __init__(self, folder: Path, n_examples: int, max_seq_len: int) -> None:
        """Create the group; arrays are made when their first batch comes."""
        self._group = zarr.create_group(folder)
        self._n_examples, self._max_seq_len = n_examples, max_seq_len
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def write(self, name: str, values: Tensor, batch: Batch) -> None:
        """Write one kind of a batch, (batch, ...), padding zeroed."""
        array = self._arrays.get(name) or self._create(name, tuple(values.shape))
        block = np.zeros((len(batch.rows), *array.shape[1:]), np.float16)
        for i, (row, n) in enumerate(zip(values.to(torch.float16).numpy(), batch.lengths, strict=True)):
            tokens = (..., slice(n), slice(n)) if name == "attn" else (..., slice(n), slice(None))
            block[i][tokens] = row[tokens]
        array[batch.rows[0] : batch.rows[-1] + 1] = block

    def write_layers(self, name: str, layers: Sequence[Tensor], batch: Batch) -> None:
        """Write one kind of a batch that comes layer by layer, each (batch, ...)."""
        self.write(name, torch.stack(tuple(layers), dim=1), batch)

    def write_predictions(self, ids: Tensor, batch: Batch) -> None:
        """Write which token is predicted where the text's last token is."""
        if PREDICTIONS not in self._arrays:
            self._arrays[PREDICTIONS] = self._group.create_array(PREDICTIONS, shape=(self._n_examples,), dtype="int32")
        self._arrays[PREDICTIONS][batch.rows[0] : batch.rows[-1] + 1] = ids.numpy()

    def _create(self, name: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
        per_example = list(shape[1:])
        per_example[-2] = self._max_seq_len
        if name == "attn":
            per_example[-1] = self._max_seq_len
        chunk = tuple(per_example) if name == "embed" else (1, *per_example[1:])
        array = self._group.create_array(
            name, shape=(self._n_examples, *per_example), chunks=(1, *chunk), dtype="float16"
        )
        self._arrays[name] = array
        return array


def zarr_reader(folder: Path, lengths: Sequence[int]) -> Read:
    """Return how to read what `ZarrArrays` wrote, given the number of tokens of each example."""
    group = zarr.open_group(folder, mode="r")

    def read(name: str, row: int) -> np.ndarray:
        n = lengths[row]
        values = np.asarray(group[name][row])  # type: ignore[index]
        return values[..., :n, :n] if name == "attn" else values[..., :n, :]

    return read
