"""Attention as the page draws it: bytes for drawing, halves for reading, never more than a response may hold."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64, UInt8

from decision_traces.errors import SelectionError
from decision_traces.page.runs import PageRun
from decision_traces.store import checked_index

LARGEST: Final = 1 << 20
"""Bytes of one response, at most."""
_SIDE: Final = 1000  # a matrix with a longer side is drawn by the largest of neighbouring values
_THUMB: Final = 48
_JSON_CHARS: Final = 10  # of three digits: 1.23e-05, and a comma


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """How the attention of one example (and choice) is cut up.

    Attributes:
        keys: Number of tokens that are attended to.
        queries: Token position of every row.
        stored: Where these rows stand in the array.
        start: First token on the key axis.
        pool: How many neighbouring tokens make one drawn cell.
        thumb_pool: The same for thumbnails.
        block: Rows in one block of values.
    """

    keys: int
    queries: Int64[np.ndarray, " rows"]
    stored: Int64[np.ndarray, " rows"]
    start: int
    pool: int
    thumb_pool: int
    block: int

    @property
    def n_blocks(self) -> int:
        """How many blocks of values there are."""
        return -(-len(self.queries) // self.block)

    def as_json(self) -> dict[str, Any]:
        """Return what the page needs to read the bytes."""
        whole = np.array_equal(self.queries, np.arange(self.keys))
        return {
            "keys": self.keys,
            "queries": None if whole else self.queries.tolist(),
            "rows": len(self.queries),
            "pool": self.pool,
            "thumb_pool": self.thumb_pool,
            "block": self.block,
        }


def attention_layout(run: PageRun, row: int, choice: int) -> AttentionLayout | None:
    """Return how attention is cut up, None where the run has none."""
    array = run.attention
    if array is None:
        return None
    at = (row, choice) if run.task.reads_choices else row
    held = array.slots("query").at(at)
    stored = np.flatnonzero(held >= 0)
    spans = array.slots("key").spans
    start, stop = int(spans.start[at]), int(spans.stop[at])
    longest = max(1, stop - start, len(stored))
    return AttentionLayout(
        keys=stop - start,
        queries=held[stored] - start,
        stored=stored,
        start=start,
        pool=-(-longest // _SIDE),
        thumb_pool=-(-longest // _THUMB),
        block=max(1, LARGEST // _JSON_CHARS // longest - 1),
    )


def layer_of(
    run: PageRun, row: int, choice: int, layer: int
) -> tuple[Float[np.ndarray, "head rows keys"], AttentionLayout]:
    """Return one layer's attention of an example, without padding.

    Raises:
        NotCapturedError: The run has no attention.
        SelectionError: There is no such layer, or it was not kept.
    """
    layout = attention_layout(run, row, choice)
    if layout is None:
        raise SelectionError(run.not_captured(run.attention_name))
    return run.kept(("attn", row, choice, layer), lambda: _read(run, row, choice, layer, None, layout)), layout


def _read(
    run: PageRun, row: int, choice: int, layer: int, head: int | None, layout: AttentionLayout
) -> Float[np.ndarray, "*head rows keys"]:
    """Read one layer of an example, or one head of it."""
    values = (
        run.store.mcq_attn(row, choice, layer, head)
        if run.task.reads_choices
        else run.store.attn(row, run.store.sides[0], "self", layer, head)
    )
    part: np.ndarray = values[..., layout.stored, layout.start : layout.start + layout.keys]
    return np.ascontiguousarray(part)


def head_of(run: PageRun, row: int, choice: int, layer: int, head: int) -> tuple[np.ndarray, AttentionLayout]:
    """Return one head's attention; see `layer_of`. Of a long text, a layer of all heads may be a gigabyte."""
    layout = attention_layout(run, row, choice)
    if layout is None:
        raise SelectionError(run.not_captured(run.attention_name))
    heads = (run.attention_axes() or {})["heads"]
    number = checked_index(head, run.store.H, "head")
    if number not in heads:
        raise SelectionError(f"No head {number} here: this run keeps heads {', '.join(map(str, heads))} (--heads).")
    whole: np.ndarray | None = run.held(("attn", row, choice, layer))
    if whole is not None:
        return whole[heads.index(number)], layout
    key = ("attn", row, choice, layer, number)
    return run.kept(key, lambda: _read(run, row, choice, layer, number, layout)), layout


def drawn(values: Float[np.ndarray, "*lead rows keys"], pool: int) -> UInt8[np.ndarray, "*lead down across"]:
    """Return probabilities as bytes, 255 · √p: small ones stay visible. Of a pooled cell the largest counts."""
    if pool > 1:
        values = _pooled(values, pool)
    bytes_: np.ndarray = np.rint(np.sqrt(np.clip(values.astype(np.float32), 0, 1)) * 255).astype(np.uint8)
    return bytes_


def _pooled(values: np.ndarray, pool: int) -> np.ndarray:
    rows, keys = values.shape[-2:]
    padding = [(0, 0)] * (values.ndim - 2) + [(0, -rows % pool), (0, -keys % pool)]
    padded = np.pad(values, padding)
    shape = (*values.shape[:-2], padded.shape[-2] // pool, pool, padded.shape[-1] // pool, pool)
    pooled: np.ndarray = padded.reshape(shape).max(axis=(-3, -1))
    return pooled


def block_of_rows(layout: AttentionLayout, block: int) -> slice:
    """Return the rows of one block.

    Raises:
        SelectionError: There is no such block.
    """
    if not 0 <= block < max(1, layout.n_blocks):
        raise SelectionError(f"block {block}: there are {layout.n_blocks}, counted from 0.")
    return slice(block * layout.block, (block + 1) * layout.block)
