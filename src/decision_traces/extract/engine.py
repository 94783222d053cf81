"""The one loop: blocks of examples through the model into buffers, and out to disk beside the next block's compute."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from decision_traces.capture.buffers import BlockBuffers, Site, site_shape
from decision_traces.capture.recorder import Recorder
from decision_traces.extract.progress import Progress
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.load import LoadedModel
from decision_traces.schema import ATTN, Dims, Side, side_of, stage_of
from decision_traces.store.layout import RunLayout
from decision_traces.store.writer import RunWriter
from decision_traces.tokens import Encoding, TokenBatch, batches

TOKEN_BUDGET: Final = 2048
"""Most slots of a batch; enough for full speed on a CPU, little enough for logits of all positions to fit."""

_IN_FLIGHT: Final = 2
"""Buffers: one is filled while the other is written."""

NextPosition = Callable[[Encoding], int]
"""Encoding → the position where its prediction is made."""


@runtime_checkable
class Workflow(Protocol):
    """What a workflow adds to the loop: its forward pass with what it keeps of the outcome, and its tables."""

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model on a batch, keeping the outcome of each row.

        Rows count from `first_row` of the run; with choices, each choice of each example is a row.
        """

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of each table that belong to these examples, and forget them."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything the loop needs.

    Attributes:
        loaded, anatomy: The model and where its inner path lies.
        encodings: All examples in order; with choices, each choice of each example.
        layout: What the run holds.
        batch_size: Most rows of a batch.
        pad: Id that fills padding.
        next_position: Where a row's prediction is made; None where there is no one such position.
    """

    loaded: LoadedModel
    anatomy: Anatomy
    encodings: Sequence[Encoding]
    layout: RunLayout
    batch_size: int
    pad: int
    next_position: NextPosition | None = None

    def run(self, workflow: Workflow, writer: RunWriter, progress: Progress) -> None:
        """Extract every block that the writer does not have yet.

        Raises:
            CaptureError: A site did not fire, or a value is not finite or too large for the storage type.
            RunError: The folder cannot be written, or the disk is full.
        """
        blocks = [b for b in range(self.layout.n_blocks) if b not in writer.done]
        sites, sides = self.layout.places(), self.layout.sides
        rows = self.layout.block_rows * self.layout.dims.n_choices
        n_sets = min(_IN_FLIGHT, max(1, len(blocks)))
        sets = [BlockBuffers(sites, sides, rows, self.layout.dtype) for _ in range(n_sets)]
        writing: list[Future[int] | None] = [None] * len(sets)
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as pool, torch.inference_mode():
            for turn, block in enumerate(blocks):
                slot = turn % len(sets)
                _finish(writing[slot], writer, progress)
                self._compute(block, sets[slot], workflow, writer, progress)
                writing[slot] = self._submit(pool, block, sets[slot], workflow, writer)
            for slot in range(len(blocks), len(blocks) + len(sets)):
                _finish(writing[slot % len(sets)], writer, progress)

    def _compute(
        self, block: int, buffers: BlockBuffers, workflow: Workflow, writer: RunWriter, progress: Progress
    ) -> None:
        rows, choices = self.layout.rows(block), self.layout.dims.n_choices
        first = rows.start * choices
        encodings = self.encodings[first : rows.stop * choices]
        buffers.start(self._lengths(encodings), self._slots(encodings))
        recorder = Recorder(self.loaded.model, self.anatomy, buffers)
        done = 0
        one_length = not self.anatomy.pads
        for batch in batches(encodings, self.batch_size * choices, TOKEN_BUDGET, self.pad, one_length=one_length):
            with recorder.recording(batch.rows):
                workflow.forward(self.loaded, batch, first)
            buffers.check_finite()
            done += len(batch.rows)
            progress.advance(done // choices - (done - len(batch.rows)) // choices, sum(batch.lengths))
            progress.written(writer.bytes_written)  # what the other thread has done meanwhile
        progress.advance(len(rows) - done // choices, 0)  # texts of no tokens

    def _lengths(self, encodings: Sequence[Encoding]) -> dict[Side, list[int]]:
        main = self.anatomy.main.side
        return {side: [(e.main if side == main else e).n_tokens for e in encodings] for side in self.layout.sides}

    def _slots(self, encodings: Sequence[Encoding]) -> dict[Side, list[tuple[int, ...]]] | None:
        """Return which token position stands in each slot of each row, for sides that do not keep all."""
        main = self.anatomy.main.side
        return {
            side: [kept_positions(dims, e.main if side == main else e, self.next_position) for e in encodings]
            for side, dims in self.layout.sides.items()
            if dims.positions != "all"
        }

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        block: int,
        buffers: BlockBuffers,
        workflow: Workflow,
        writer: RunWriter,
    ) -> Future[int]:
        choices = self.layout.dims.n_choices
        tensors = {place: _with_choices(b.data.numpy(), choices) for place, b in buffers.sites.items()}
        peaks = {_key(place): b.peak for place, b in buffers.sites.items()}
        return pool.submit(
            writer.write_block, block, tensors, workflow.tables(self.layout.rows(block)), {"peaks": peaks}
        )


def kept_positions(dims: Dims, encoding: Encoding, next_position: NextPosition | None) -> tuple[int, ...]:
    """Return the token position of each slot; -1 where the text has none.

    Args:
        dims: Say which positions are kept.
        encoding: The text (the target, on the decoder's side of an encoder-decoder).
        next_position: Where its prediction is made.
    """
    if isinstance(dims.positions, tuple):
        wanted = dims.positions
    elif dims.positions == "next" and next_position is not None:
        wanted = (next_position(encoding),)
    else:
        wanted = (encoding.n_tokens - 1,)
    return tuple(p if 0 <= p < encoding.n_tokens else -1 for p in wanted)


def _key(place: Site) -> str:
    return f"{place[0]}/{place[1]}"


def _with_choices(data: np.ndarray, choices: int) -> np.ndarray:
    """Return (rows, ...) as (examples, choices, ...), if there are choices."""
    return data if choices == 1 else data.reshape(-1, choices, *data.shape[1:])


def _finish(future: Future[int] | None, writer: RunWriter, progress: Progress) -> None:
    if future is not None:
        future.result()
        progress.written(writer.bytes_written)


def row_bytes(layout: RunLayout) -> int:
    """Return the bytes of one example, with all its choices, in the buffers."""
    item = np.dtype(layout.dtype).itemsize * layout.dims.n_choices
    return item * sum(_values(name, layout) for name, _ in layout.places())


def _values(name: str, layout: RunLayout) -> int:
    return int(np.prod(site_shape(name, layout.sides[side_of(name)]), dtype=np.int64))


def disk_estimate(layout: RunLayout, encodings: Sequence[Encoding], *, links: bool) -> int:
    """Return how many bytes the arrays can take at most: tokens only, causal attention without its empty triangle.

    Args:
        layout: What the run holds.
        encodings: Every example (every choice of it).
        links: Whether the file system has hard links, so that each distinct tensor is stored once.
    """
    total = 0
    for (name, _layer), places in layout.places().items():
        dims = layout.sides[side_of(name)]
        n = np.asarray([(e.main if side_of(name) == "dec" else e).n_tokens for e in encodings], dtype=np.int64)
        per_row = _values(name, layout)
        if dims.positions != "all":
            values = per_row * len(n)
        elif stage_of(name) == ATTN:
            heads = per_row // max(1, dims.n_positions**2)
            values = heads * int((n * (n + 1) // 2 if side_of(name) == "dec" else n * n).sum())
        else:
            values = per_row * int(n.sum()) // max(1, dims.n_positions)
        total += values * (1 if links else len(places))
    return total * np.dtype(layout.dtype).itemsize


def largest_values(layout: RunLayout, facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest absolute value of every array over all blocks."""
    largest = dict.fromkeys((spec.name for spec in layout.specs), 0.0)
    for place, specs in layout.places().items():
        peak = max((fact["peaks"][_key(place)] for fact in facts), default=0.0)
        for spec, _ in specs:
            largest[spec.name] = max(largest[spec.name], peak)
    return largest
