"""The logit lens at every position and depth, with the most probable tokens: `lens.zarr`."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64

from decision_traces.analysis.grids import CANDIDATE, LENS_ARRAYS, SLOT, TOP, GridWriter, rows_at_once
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.lens.vocabulary import Vocabulary, in_order, in_strips
from decision_traces.analysis.places import Block, Places, block_of, places_of
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.states import Point, path_of
from decision_traces.format.analyses import LENS_GRID
from decision_traces.format.stages import DEPTH, EXAMPLE
from decision_traces.memory import freed_memory_kept
from decision_traces.store import TraceStore

PAGE_TOP_K: Final = 10
"""How many of the most probable tokens the page lists."""
_SCALE_QUANTILE: Final = 0.99
Columns = dict[str, np.ndarray]


@freed_memory_kept()
def write_lens_grid(
    store: TraceStore,
    unembedding: Unembedding,
    folder: Path,
    *,
    top_k: int = PAGE_TOP_K,
    all_positions: bool = False,
    progress: Progress | None = None,
) -> Int64[np.ndarray, " ids"]:
    """Read every state at every position as if the model ended there, and keep it in a folder.

    Method: as `lens.logit_lens`, which checks first that this is the model of the run.

    Memory: the states and results of some examples (a few MB), and the logits of some rows (64 MB on a CPU, a
    few times over).

    Args:
        store: A decoder run that captured `hidden` or `resid`.
        unembedding: The model's final norm and output embedding.
        folder: Where the group `lens.zarr` goes; see `new_result`.
        top_k: How many of the most probable tokens to keep of every state.
        all_positions: Every position that the run keeps, and not only those of its decisions.
        progress: Called with (examples done, of how many).

    Returns:
        The token ids that stand in it.

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        UsageError: The run has no decision at one position.
        DataError: No example of the run has a prediction.
    """
    places, path = places_of(store, all_positions=all_positions), path_of(store, "hidden")
    n_slots, vocab = places.positions.shape[1], unembedding.weight.shape[0]
    sizes = {
        EXAMPLE: store.n,
        SLOT: n_slots,
        DEPTH: len(path),
        CANDIDATE: places.n_candidates,
        TOP: min(top_k, vocab),
    }
    row_bytes = n_slots * len(path) * (store.d_model * 2 + top_k * 6 + 16)
    writer = GridWriter(folder / LENS_GRID, LENS_ARRAYS, sizes, rows_at_once(row_bytes, store.n))
    met, scales = np.zeros(vocab, bool), {"entropy": 0.0, "kl": 0.0}
    for start in range(0, store.n, writer.rows):
        block = block_of(places, slice(start, min(start + writer.rows, store.n)))
        columns = _look(block, path, unembedding, sizes[TOP]) if len(block) else None
        if columns is None:
            writer.write(block.rows, {"positions": places.positions[block.rows].astype(np.int32)})
            continue
        for name in ("top_ids", "candidates"):
            met[np.unique(columns[name][columns[name] >= 0])] = True
        for name in scales:
            scales[name] = max(scales[name], float(np.quantile(columns[name], _SCALE_QUANTILE)))
        writer.write(block.rows, _spread(columns, block, places))
        if progress is not None:
            progress(block.rows.stop, store.n)
    writer.finish({"all_positions": all_positions, "scale": scales, "stage": "hidden", "vocab_size": int(vocab)})
    return np.flatnonzero(met)


def _spread(columns: Columns, block: Block, places: Places) -> Columns:
    """Return (m, depth, ...) as (row, depth, slot, ...), and the rest as (row, slot, ...)."""
    n_slots = places.positions.shape[1]
    values = {"positions": places.positions[block.rows].astype(np.int32)}
    for name, column in columns.items():
        whole = block.spread(column, n_slots, -1 if name in {"candidates", "top_ids", "rank"} else 0)
        flat = name in {"candidates", "known"}
        values[name] = whole if flat else np.moveaxis(whole, 1, 2)
    return values


def _look(block: Block, path: list[Point], unembedding: Unembedding, top_k: int) -> Columns:
    """Return what the lens says of every place of a block, (m, depth, ...)."""
    states = [(torch.from_numpy(block.read(point)), point.normed) for point in path]
    found: list[Columns] = []
    for rows in unembedding.portions(len(block)):
        end = unembedding.logits(states[-1][0][rows], normed=states[-1][1])
        part = block.part(rows)
        candidates = part.candidates(end)
        last = in_strips(end, top_k, lambda one, _number, _strip: one)
        describe = partial(_statistics, last=last, candidates=candidates)
        before = (unembedding.logits(s[rows], normed=normed) for s, normed in states[:-1])
        depths = [in_order(in_strips(logits, top_k, describe)) for logits in chain(before, [end])]
        columns = {name: np.stack([depth[name] for depth in depths], axis=1) for name in depths[0]}
        known = (part.true_id >= 0).astype(np.int8)
        found.append(columns | {"candidates": candidates.astype(np.int32), "known": known})
    return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}


def _statistics(
    one: Vocabulary,
    number: int,
    strip: slice,
    *,
    last: Sequence[Vocabulary],
    candidates: Int64[np.ndarray, "m candidate"],
) -> Columns:
    """Describe one state of some places; `last` is what the model says at its end, by strip."""
    ids = candidates[strip].astype(np.int64)
    of_candidates = np.where(ids >= 0, one.prob(ids.clip(0)), np.float32(0))
    return {
        "prob": of_candidates[:, 0],
        "rank": one.rank(ids[:, 0]).astype(np.int32),
        "entropy": one.entropy(),
        "kl": one.divergence_from(last[number]).clip(0),
        "top_ids": one.top_ids.astype(np.int32),
        "top_probs": one.prob(one.top_ids).astype(np.float16),
        "candidate_probs": of_candidates.astype(np.float16),
    }
