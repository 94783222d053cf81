"""The one loop: blocks of examples through the model into buffers, and out to disk beside the next block's compute."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from decision_traces.capture.buffers import BlockBuffers, site_shape, sites_of
from decision_traces.capture.recorder import Recorder
from decision_traces.extract.progress import Progress
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.load import LoadedModel
from decision_traces.schema import ATTN, ArraySpec, Dims, StorageDtype
from decision_traces.store.writer import RunLayout, RunWriter
from decision_traces.tokens import Encoding, TokenBatch, batches

TOKEN_BUDGET: Final = 2048
"""Most slots of a batch; enough for full speed on a CPU, little enough for logits of all positions to fit."""

_IN_FLIGHT: Final = 2
"""Buffers: one is filled while the other is written."""


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
    """

    loaded: LoadedModel
    anatomy: Anatomy
    encodings: Sequence[Encoding]
    layout: RunLayout
    batch_size: int
    pad: int

    def run(self, workflow: Workflow, writer: RunWriter, progress: Progress) -> None:
        """Extract every block that the writer does not have yet.

        Raises:
            CaptureError: A site did not fire, or a value is not finite or too large for the storage type.
            RunError: The folder cannot be written, or the disk is full.
        """
        blocks = [b for b in range(self.layout.n_blocks) if b not in writer.done]
        sites = sites_of(self.layout.specs, self.layout.dims.n_layers)
        dims, dtype = self.layout.dims, self.layout.dtype
        rows = self.layout.block_rows * dims.n_choices
        kept = frozenset(self.layout.places())
        sets = [BlockBuffers(sites, dims, rows, dtype, kept) for _ in range(min(_IN_FLIGHT, max(1, len(blocks))))]
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
        buffers.start([e.n_tokens for e in encodings])
        recorder = Recorder(self.loaded.model, self.anatomy, buffers)
        done = 0
        for batch in batches(encodings, self.batch_size * choices, TOKEN_BUDGET, self.pad):
            with recorder.recording(batch.rows, batch.lengths):
                workflow.forward(self.loaded, batch, first)
            buffers.check_finite()
            done += len(batch.rows)
            progress.advance(done // choices - (done - len(batch.rows)) // choices, sum(batch.lengths))
            progress.written(writer.bytes_written)  # what the other thread has done meanwhile
        progress.advance(len(rows) - done // choices, 0)  # texts of no tokens

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        block: int,
        buffers: BlockBuffers,
        workflow: Workflow,
        writer: RunWriter,
    ) -> Future[int]:
        choices = self.layout.dims.n_choices
        tensors = {site: _with_choices(b.data.numpy(), choices) for site, b in buffers.sites.items()}
        peaks = {site: [float(p) for p in b.peak] for site, b in buffers.sites.items()}
        return pool.submit(
            writer.write_block, block, tensors, workflow.tables(self.layout.rows(block)), {"peaks": peaks}
        )


def _with_choices(data: np.ndarray, choices: int) -> np.ndarray:
    """Return (layers, rows, ...) as (layers, examples, choices, ...), if there are choices."""
    if choices == 1:
        return data
    return data.reshape(data.shape[0], -1, choices, *data.shape[2:])


def _finish(future: Future[int] | None, writer: RunWriter, progress: Progress) -> None:
    if future is not None:
        future.result()
        progress.written(writer.bytes_written)


def row_bytes(specs: Sequence[ArraySpec], dims: Dims, dtype: StorageDtype) -> int:
    """Return the bytes of one example, with all its choices, in the buffers."""
    item = np.dtype(dtype).itemsize * dims.n_choices
    return item * sum(int(np.prod(site_shape(site, dims))) for site in sites_of(specs, dims.n_layers))


def disk_estimate(layout: RunLayout, lengths: Sequence[int], *, links: bool) -> int:
    """Return how many bytes the arrays can take at most: tokens only, causal attention without its empty triangle.

    Args:
        layout: What the run holds.
        lengths: Number of tokens of every example (of every choice of it).
        links: Whether the file system has hard links, so that each distinct tensor is stored once.
    """
    dims, n = layout.dims, np.asarray(lengths, dtype=np.int64)
    causal = any(spec.group.startswith("dec_") for spec in layout.specs)
    tokens, pairs = int(n.sum()), int((n * (n + 1) // 2 if causal else n * n).sum())
    total = 0
    for (site, _layer), places in layout.places().items():
        per_position = int(np.prod(site_shape(site, dims)[1:])) // dims.n_positions
        values = dims.n_heads * pairs if site == ATTN else per_position * tokens
        total += values * (1 if links else len(places))
    return total * np.dtype(layout.dtype).itemsize


def largest_values(specs: Sequence[ArraySpec], n_layers: int, facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest absolute value of every array over all blocks."""
    return {spec.name: max(_peaks(spec, n_layers, facts), default=0.0) for spec in specs}


def _peaks(spec: ArraySpec, n_layers: int, facts: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    size = n_layers + 1 if spec.stage == "hidden" else 1 if spec.layer_axis is None else n_layers
    for index in range(size):
        site, layer = spec.source(index, n_layers)
        yield from (fact["peaks"][site][layer] for fact in facts)
