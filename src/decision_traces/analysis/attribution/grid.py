"""What each part adds to the lead over every candidate, at every position: `contributions.zarr`.

A contribution is linear in the direction it is measured along. Kept for the target against each candidate, the lead
of any candidate over any other is a difference of rows, so that a reader can change the competitor without the model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64, Int64

from decision_traces.analysis.attribution.encoders import ChoiceParts
from decision_traces.analysis.attribution.frozen import FrozenNorm, freeze
from decision_traces.analysis.attribution.heads import HeadWriter, head_points
from decision_traces.analysis.grids import (
    CANDIDATE,
    CONTRIBUTION_ARRAYS,
    PART,
    SLOT,
    GridWriter,
    part_names,
    rows_at_once,
)
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.places import Block, Places, block_of, places_of
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Point, path_of
from decision_traces.errors import ModelError
from decision_traces.format.analyses import CONTRIBUTION_GRID
from decision_traces.format.stages import EXAMPLE, HEAD, LAYER
from decision_traces.store import TraceStore

_ROUNDINGS: Final = 16  # how many roundings a sum may be off before it is an error, as in `attribution`


@dataclass(frozen=True, slots=True)
class _Way:
    """Everything that leads from the stream to the logits, and the states on it."""

    unembedding: Unembedding
    norm: FrozenNorm
    embed: Point
    steps: tuple[Point, ...]
    rounding: float


def write_contribution_grid(
    store: TraceStore,
    unembedding: Unembedding,
    heads: tuple[HeadWriter, ...] | None,
    folder: Path,
    *,
    all_positions: bool = False,
    progress: Progress | None = None,
) -> Int64[np.ndarray, " ids"]:
    """Split the lead of every position's target over each of its candidates, and keep it in a folder.

    Method: direct logit attribution, as `attribution.direct_attribution`, which checks first that the run and its
    model allow it.

    Memory: the states of some examples (a few MB, several times over in float64), and for heads the attention of
    one layer of these examples.

    Args:
        store: A decoder run that captured `resid`.
        unembedding: The model's final norm and output embedding.
        heads: Each layer's way from heads to the stream, to split attention by head; None not to.
        folder: Where the group `contributions.zarr` goes; see `new_result`.
        all_positions: Every position that the run keeps, and not only those of its decisions.
        progress: Called with (examples done, of how many).

    Returns:
        The token ids that stand in it.

    Raises:
        NotCapturedError: The run did not capture what is needed.
        ModelError: The parts do not add up to the model's logit differences.
    """
    places = places_of(store, all_positions=all_positions)
    steps = [path_of(store, stage) for stage in ("post_attn", "post_mlp")]
    way = _Way(
        unembedding,
        freeze(unembedding.norm, store.d_model),
        Point(store.array("dec_res_embed"), None),
        tuple(point for layer in zip(*steps, strict=True) for point in layer),
        resolution(store),
    )
    sizes = _sizes(store, places)
    arrays = CONTRIBUTION_ARRAYS if heads else CONTRIBUTION_ARRAYS[:-1]
    n_slots, width = sizes[SLOT], sizes[CANDIDATE]
    row_bytes = n_slots * width * (store.d_model * 8 + sizes[PART] * 8)
    writer = GridWriter(folder / CONTRIBUTION_GRID, arrays, sizes, rows_at_once(row_bytes // 4, store.n))
    met, worst = np.zeros(unembedding.weight.shape[0], bool), 0.0
    for start in range(0, store.n, writer.rows):
        block = block_of(places, slice(start, min(start + writer.rows, store.n)))
        values: dict[str, np.ndarray] = {"positions": places.positions[block.rows].astype(np.int32)}
        if len(block):
            columns, error = _split(store, block, way, heads)
            met[np.unique(columns["candidates"][columns["candidates"] >= 0])] = True
            worst = max(worst, error)
            empty = {"candidates": -1}
            values |= {name: block.spread(v, n_slots, empty.get(name, 0)) for name, v in columns.items()}
        writer.write(block.rows, values)
        if progress is not None:
            progress(block.rows.stop, store.n)
    about = {"all_positions": all_positions, "parts": part_names(store.L), "sum_error": worst, "of": "token"}
    cap = unembedding.ending.cap
    writer.finish(about if cap is None else about | {"logit_cap": cap})
    return np.flatnonzero(met)


def _sizes(store: TraceStore, places: Places) -> dict[str, int]:
    return {
        EXAMPLE: store.n,
        SLOT: places.positions.shape[1],
        CANDIDATE: places.n_candidates,
        PART: 2 + 2 * store.L,
        LAYER: store.L,
        HEAD: store.H,
    }


def _split(
    store: TraceStore, block: Block, way: _Way, heads: tuple[HeadWriter, ...] | None
) -> tuple[dict[str, np.ndarray], float]:
    """Return candidates, parts and heads of the places of a block, and the largest error of a sum."""
    candidates, logits = _candidates(block, way)
    there, at = candidates >= 0, np.where(candidates >= 0, candidates, candidates[:, :1])
    final = block.read(way.steps[-1]).astype(np.float64)
    scale = way.norm.scale_at(final)
    m, width = at.shape
    rows, bias = way.unembedding.token_rows(at.ravel())
    rows, bias = rows.reshape(m, width, -1), bias.reshape(m, width)
    direction = rows[:, :1] - rows
    flat = direction.reshape(m * width, -1)
    pulled = way.norm.pull(flat, np.repeat(scale, width)).reshape(m, width, -1)
    parts = [np.einsum("md,mkd->mk", block.read(way.embed).astype(np.float64), pulled)]
    before = parts[0]
    for point in way.steps:
        after = np.einsum("md,mkd->mk", block.read(point).astype(np.float64), pulled)
        parts.append(after - before)
        before = after
    parts.append((flat @ way.norm.bias).reshape(m, width) + bias[:, :1] - bias)
    split = np.stack(parts, axis=2)
    products = np.square(scale[:, None] * way.norm.weight * final)[:, None] * (np.square(rows[:, :1]) + np.square(rows))
    rounded = np.sqrt(products.sum(2)) + np.abs(logits[:, :1]) + np.abs(logits)
    error = _checked(split.sum(2) - (logits[:, :1] - logits), rounded, way.rounding)
    columns = {"candidates": candidates.astype(np.int32), "parts": np.where(there[:, :, None], split, 0.0)}
    if heads is not None:
        columns["heads"] = _heads(store, block, heads, pulled)
    return {name: v.astype(np.float32) if v.dtype == np.float64 else v for name, v in columns.items()}, error


def _candidates(block: Block, way: _Way) -> tuple[Int64[np.ndarray, "m candidate"], Float64[np.ndarray, "m candidate"]]:
    """Return the candidates of every place and their logits at the end of the model, before a cap."""
    end, found, logits = torch.from_numpy(block.read(way.steps[-1])), [], []
    for rows in way.unembedding.portions(len(block)):
        of_all = way.unembedding.logits(end[rows], normed=False, capped=False)
        ids = block.part(rows).candidates(of_all)
        at = torch.from_numpy(np.where(ids >= 0, ids, ids[:, :1])).to(of_all.device)
        found.append(ids)
        logits.append(of_all.gather(1, at).double().cpu().numpy())
    return np.concatenate(found), np.concatenate(logits)


def _checked(
    missed: Float64[np.ndarray, "m candidate"], rounded: Float64[np.ndarray, "m candidate"], rounding: float
) -> float:
    """Return the largest error of a sum.

    Raises:
        ModelError: It is more than rounding.
    """
    if not (np.abs(missed) <= _ROUNDINGS * rounding * rounded).all():
        raise ModelError(
            f"The parts miss the model's logit differences by {np.nanmax(np.abs(missed)):.3g}, more than rounding "
            "explains: the model is not the one of the run, or does more than its parts say."
        )
    return float(np.abs(missed).max(initial=0.0))


def _heads(
    store: TraceStore, block: Block, heads: tuple[HeadWriter, ...], pulled: Float64[np.ndarray, "m candidate d_model"]
) -> np.ndarray:
    """Return what each head adds along every direction: (m, candidate, layer, head)."""
    m, width, _ = pulled.shape
    found = np.zeros((m, width, len(heads), store.H), np.float32)
    points = head_points(store)
    for layer, writer in enumerate(heads):
        attn, value = (
            p.array.read(example=block.rows, layer=layer) for p in (points[layer], points[len(heads) + layer])
        )
        for row in np.unique(block.at[0]):
            here = np.flatnonzero(block.at[0] == row)
            probs = torch.from_numpy(attn[row][:, block.stored[here]]).float()
            values = torch.from_numpy(value[row]).float()
            grouped = probs.reshape(values.shape[0], -1, *probs.shape[1:])
            out = torch.einsum("kgpt,ktd->pkgd", grouped, values).flatten(1, 2)
            split, _ = writer.split(out.repeat_interleave(width, dim=0), pulled[here].reshape(len(here) * width, -1))
            found[here, :, layer] = split.reshape(len(here), width, -1)
    return found


def write_choice_contributions(folder: Path, result: Attribution, choices: ChoiceParts) -> None:
    """Keep the attribution of an encoder's choices in the same form: the right choice against each of the others."""
    n, n_choices, n_layers = choices.attn.shape
    steps = np.stack([choices.attn, choices.mlp], axis=3).reshape(n, n_choices, -1)
    parts = np.concatenate([choices.embed[..., None], steps, choices.remainder[..., None]], axis=2)
    each = np.arange(n)[:, None]
    order = np.argsort(-choices.score, axis=1, kind="stable")
    order = np.stack([[t, *row[row != t]] for t, row in zip(result.target_id, order, strict=True)]).astype(np.int32)
    leads = (parts[each, order[:, :1]] - parts[each, order]).astype(np.float32)[:, None]
    sizes = {EXAMPLE: n, SLOT: 1, CANDIDATE: n_choices, PART: 2 + 2 * n_layers}
    writer = GridWriter(folder / CONTRIBUTION_GRID, CONTRIBUTION_ARRAYS[:-1], sizes, rows_at_once(leads[:1].nbytes, n))
    for start in range(0, n, writer.rows):
        rows = slice(start, min(start + writer.rows, n))
        at = np.zeros((rows.stop - start, 1), np.int32)
        writer.write(rows, {"positions": at, "candidates": order[rows][:, None], "parts": leads[rows]})
    about = {"parts": part_names(n_layers), "sum_error": result.sum_error, "of": "choice", "all_positions": False}
    writer.finish(about)
