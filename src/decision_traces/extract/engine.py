"""The one loop: blocks of examples, batch by batch, through the model into buffers, and out to disk beside the next."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import torch

from decision_traces.errors import NonFiniteError
from decision_traces.extract.helpers import Helpers
from decision_traces.extract.job import NextPosition, Prepared, Workflow
from decision_traces.extract.progress import Progress
from decision_traces.format.arrays import Dims, Side, Site
from decision_traces.memory import out_of_memory
from decision_traces.store import OpenBlock, RunWriter
from decision_traces.tokens import Encoding, TokenBatch, make_batch
from decision_traces.tracing.buffers import TORCH_DTYPES, BatchBuffers
from decision_traces.tracing.session import Session

IN_FLIGHT: Final = 2
"""Batches whose captures are in memory: one is computed while the other is written."""


@dataclass(slots=True)
class _Block:
    """A block in work: its files, and the largest values so far."""

    number: int
    files: OpenBlock
    peaks: dict[Site, float] = field(default_factory=dict)

    def note(self, place: Site, value: float) -> None:
        """Take the largest value that a batch has of a tensor into account."""
        self.peaks[place] = max(self.peaks.get(place, 0.0), value)


@dataclass(frozen=True, slots=True)
class Engine:
    """The loop over one run.

    Attributes:
        prepared: Everything known of it.
        next_position: Where a row's prediction is made; None where there is no one such position.
    """

    prepared: Prepared
    next_position: NextPosition | None = None

    def run(self, workflow: Workflow, writer: RunWriter, progress: Progress) -> None:
        """Extract every block that the writer does not have yet.

        Raises:
            CaptureError: A site did not fire, or a value is not finite or too large for the storage type.
            RunError: The folder cannot be written, or the disk is full.
        """
        session = Session(self.prepared.loaded.model, self.prepared.structure)
        with session, _Pipeline(self, session, workflow, writer, progress) as pipeline, torch.inference_mode():
            for number in range(self.prepared.layout.n_blocks):
                if number not in writer.done:
                    pipeline.block(number)

    # -- what the loop asks of it ---------------------------------------------------------------------------

    def encodings_of(self, block: int) -> Sequence[Encoding]:
        """Return the encodings of a block's rows."""
        return list(self.prepared.encodings_of(self.prepared.layout.rows(block)))

    def lengths(self, encodings: Sequence[Encoding]) -> dict[Side, list[int]]:
        """Return the number of tokens of each row, by side of the model."""
        main = self.prepared.structure.main.side
        return {
            side: [(e.main if side == main else e).n_tokens for e in encodings] for side in self.prepared.layout.sides
        }

    def slots(self, encodings: Sequence[Encoding]) -> dict[Side, list[tuple[int, ...]]]:
        """Return which token position stands in each slot of each row, for sides that do not keep all."""
        main = self.prepared.structure.main.side
        return {
            side: [kept_positions(dims, e.main if side == main else e, self.next_position) for e in encodings]
            for side, dims in self.prepared.layout.sides.items()
            if dims.positions != "all"
        }


class _NotStorable(Exception):
    """A value of this batch is not finite, or too large for the storage type."""

    def __init__(self, batch: TokenBatch, rows: Sequence[Encoding]) -> None:
        super().__init__(batch, rows)
        self.batch, self.rows = batch, rows


class _Pipeline:
    """Computes in this thread and writes beside it, with a bounded number of batches in between."""

    def __init__(
        self, engine: Engine, session: Session, workflow: Workflow, writer: RunWriter, progress: Progress
    ) -> None:
        self._engine, self._session, self._workflow = engine, session, workflow
        self._writer, self._progress = writer, progress
        self._prepared = prepared = engine.prepared
        sites, layout = prepared.layout.places(), prepared.layout
        self._beside = Helpers.of(prepared.loaded.device)
        self._free = [
            BatchBuffers(sites, layout.sides, layout.dtype, pinned=self._beside.pinned, memory=self._beside.memory)
            for _ in range(IN_FLIGHT)
        ]
        self._jobs: deque[tuple[Future[None], BatchBuffers | None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._largest = torch.finfo(TORCH_DTYPES[layout.dtype]).max
        self._most_slots: float = math.inf  # of a batch, once one was too large for the memory

    def __enter__(self) -> "_Pipeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the writing: of all that is computed, or after an error of what is being written now alone."""
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            while self._jobs and (kind is None or stopped):
                self._wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._beside.close()

    def block(self, number: int) -> None:
        """Compute a block and hand it to the writer."""
        choices = self._prepared.layout.dims.n_choices
        encodings, rows = self._engine.encodings_of(number), self._prepared.layout.rows(number)
        block = _Block(number, self._writer.open_block(number, self._beside.processes))
        done = 0
        for whole in self._prepared.batches(encodings):
            for batch, buffers in self._computed(whole, encodings, rows.start * choices):
                texts = [encodings[row] for row in batch.rows]
                self._jobs.append((self._pool.submit(self._store, block, batch, texts, buffers), buffers))
                done += len(batch.rows)
                self._progress.advance(done // choices - (done - len(batch.rows)) // choices, sum(batch.lengths))
        self._progress.advance(len(rows) - done // choices, 0)  # texts of no tokens
        self._jobs.append((self._pool.submit(self._close, block, self._workflow.tables(rows)), None))

    # -- computing ------------------------------------------------------------------------------------------

    def _computed(
        self, batch: TokenBatch, encodings: Sequence[Encoding], first_row: int
    ) -> Iterator[tuple[TokenBatch, BatchBuffers]]:
        """Run the model on a batch, in parts where the memory does not hold it whole.

        Raises:
            MemoryError, RuntimeError: It does not hold a single row.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            if part.input_ids.numel() > self._most_slots and len(part.rows) > 1:
                waiting += self._halves(part, encodings)
                continue
            buffers = self._buffers()
            try:
                self._forward(part, [encodings[row] for row in part.rows], buffers, first_row)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(part.rows) == 1:
                    raise
                self._free.append(buffers)
                self._make_smaller(part)
                waiting.append(part)
            else:
                yield part, buffers

    def _forward(self, batch: TokenBatch, rows: Sequence[Encoding], buffers: BatchBuffers, first_row: int) -> None:
        """Run the model on a batch, of which these are the texts."""
        buffers.start(self._engine.lengths(rows), self._engine.slots(rows))
        with self._session.forward_pass(buffers):
            rest = self._workflow.forward(self._prepared.loaded, batch, first_row)
        buffers.written()
        if rest is not None:
            rest()

    def _halves(self, batch: TokenBatch, encodings: Sequence[Encoding]) -> list[TokenBatch]:
        half = len(batch.rows) // 2
        parts = (batch.rows[half:], batch.rows[:half])
        return [make_batch(rows, [encodings[row] for row in rows], self._prepared.pad) for rows in parts]

    def _make_smaller(self, batch: TokenBatch) -> None:
        """Let no later batch be as large as one that the memory did not hold."""
        if self._most_slots == math.inf:
            self._progress.say(
                f"Not enough memory for a batch of {len(batch.rows)} texts: it is halved, and so are all as large."
            )
        self._most_slots = batch.input_ids.numel() // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- writing --------------------------------------------------------------------------------------------

    def _buffers(self) -> BatchBuffers:
        """Return buffers that are free, waiting for the writer where none are."""
        while not self._free:
            self._wait()
        return self._free.pop()

    def _wait(self) -> None:
        """Wait for the oldest job of the writer."""
        future, buffers = self._jobs.popleft()
        try:
            future.result()
        except _NotStorable as error:
            self._explain(error.batch, error.rows)
        if buffers is not None:
            self._free.append(buffers)
        self._progress.written(self._writer.bytes_written)

    def _store(self, block: _Block, batch: TokenBatch, rows: Sequence[Encoding], buffers: BatchBuffers) -> None:
        """Write what was captured of a batch, in the writer's thread."""
        buffers.wait()
        for place in buffers.sites:  # one after the other: what was looked at is still in the core's cache
            value = buffers.peak(place)
            if not value <= self._largest:
                raise _NotStorable(batch, rows)
            block.note(place, value)
            block.files.put(place, buffers.pieces(place, batch.rows))
        block.files.written()

    def _close(self, block: _Block, tables: Mapping[str, pa.Table]) -> None:
        block.files.close(tables, {"peaks": {peak_key(place): value for place, value in block.peaks.items()}})

    def _explain(self, batch: TokenBatch, rows: Sequence[Encoding]) -> None:
        """Run a batch again in float32 to say which value does not fit, and how large it is.

        Raises:
            NonFiniteError: Always.
        """
        layout = self._prepared.layout
        buffers = BatchBuffers(layout.places(), layout.sides, "float32")
        self._forward(batch, rows, buffers, 0)
        buffers.check_finite(self._largest)
        raise NonFiniteError("A value was not finite, but it was when its batch was run again. Nothing was committed.")


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


def peak_key(place: Site) -> str:
    """Return the name of a tensor among the facts of a block."""
    return f"{place[0]}/{place[1]}"
