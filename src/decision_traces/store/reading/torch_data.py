"""One array of a run as a PyTorch data set. The only module here to import torch, when asked."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data

from decision_traces.format.stages import EXAMPLE

if TYPE_CHECKING:
    from decision_traces.store.reading.trace_store import TraceStore


class TraceDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The examples of a run, each with one array of it."""

    def __init__(self, store: "TraceStore", name: str, picks: Mapping[str, int]) -> None:
        """Keep what to read; nothing is read.

        Args:
            store: The open run.
            name: The array.
            picks: Axis name to index, checked.
        """
        self._store, self._name, self._picks = store, name, dict(picks)
        self._process = os.getpid()

    def __len__(self) -> int:
        """Number of examples."""
        return self._store.array(self._name).size(EXAMPLE)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return values, mask (of the slots of the position axis), example_id and row of one example."""
        store = self._here()
        index = store.row(int(row))
        array = store.array(self._name)
        values = array.read(**{EXAMPLE: index, **self._picks})
        mask = array.slots(array.position_axis).at(index) >= 0
        return {
            "values": torch.from_numpy(values),
            "mask": torch.from_numpy(mask),
            "example_id": str(store.example_id(index)),
            "row": index,
        }

    def _here(self) -> "TraceStore":
        """Return the store, opened anew in a forked worker: the threads of Zarr's own reader are not there."""
        if os.getpid() != self._process:
            self._store = type(self._store)(self._store.run_dir)
            self._process = os.getpid()
        return self._store
