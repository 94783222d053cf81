"""What each part adds to the lead over every candidate, at many positions: `contributions.zarr`, for the page.

A contribution is linear in the direction it is measured along. Kept for the target against each candidate, the lead
of any candidate over any other is a difference of rows, so that a reader can change the competitor without the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from decision_traces.analysis.attribution.direct import LeadTable
from decision_traces.analysis.attribution.encoders import ChoiceParts
from decision_traces.analysis.attribution.heads import HeadWriter
from decision_traces.analysis.attribution.split import Leads, Split, split_leads
from decision_traces.analysis.attribution.way import Way
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.grids import (
    CANDIDATE,
    CONTRIBUTION_ARRAYS,
    PART,
    SLOT,
    GridWriter,
    part_names,
    rows_at_once,
)
from decision_traces.analysis.lens.logit_lens import with_competitors
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.positions import Block, Positions, block_of, positions_of
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import Attribution
from decision_traces.errors import ModelError
from decision_traces.format.analyses import CONTRIBUTION_GRID
from decision_traces.format.stages import EXAMPLE, HEAD, LAYER
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Kind


def attribution_and_grid(
    store: TraceStore,
    unembedding: Unembedding,
    heads: tuple[HeadWriter, ...] | None,
    folder: Path,
    *,
    kind: Kind | None = None,
    all_positions: bool = False,
    progress: Progress | None = None,
) -> tuple[Attribution, Int64[np.ndarray, " ids"]]:
    """Split leads at many positions: keep all of that in a folder, and return that of the decisions.

    Method: as `direct_attribution`, which gives the same for the decisions only: every state is read once.

    Memory: the result, the states of some examples (a few MB, several times over in float64), and for heads what they
    put out in one layer of these examples.

    Args:
        store: A decoder run that captured what `direct_attribution` needs, and `hidden` or `resid`.
        unembedding: The model's final norm and output embedding.
        heads: Each layer's way from heads to the stream, to split attention by head; None not to.
        folder: Where the group `contributions.zarr` goes; see `new_result`.
        kind: Which decisions to return; the run's own where left out.
        all_positions: Every position that the run keeps, and not only those of its decisions.
        progress: Called with (examples done, of how many).

    Returns:
        What the parts add to the leads of the decisions, and the token ids that stand in the folder.

    Raises:
        TraceError: See `direct_attribution`.
        SelectionError: The run does not keep the position of some decision.
    """
    way = Way.of(store, unembedding, heads)
    decisions = with_competitors(decisions_of(store, kind), store, unembedding)
    positions = positions_of(store, all_positions=all_positions)
    table, slots, page = LeadTable(way, decisions), positions.slots_of(decisions), _Page.of(way, positions, folder)
    for start in range(0, store.n, page.writer.rows):
        block = block_of(positions, slice(start, min(start + page.writer.rows, store.n)))
        if len(block):
            final = way.final(block.read)
            decided = table.leads(*block.chosen(decisions, slots, page.n_slots), final)
            candidates = _candidates(block, way, final)
            of_page, of_table = split_leads(way, block, final, [candidates, decided])
            table.add(decided, of_table)
            page.write(block, page.columns(candidates, of_page))
        else:
            page.write(block, {})
        if progress is not None:
            progress(block.rows.stop, store.n)
    return table.result(), page.finish(all_positions=all_positions)


def _candidates(block: Block, way: Way, final: Float32[np.ndarray, "m d_model"]) -> Leads:
    """Return the leads of every target over its candidates; one that is none is the target itself, as id -1."""
    end, ids_by_portion, logits_by_portion = torch.from_numpy(final), [], []
    for rows in way.unembedding.portions(len(block)):
        of_all = way.unembedding.logits(end[rows], normed=False, capped=False)
        ids = block.part(rows).candidates(of_all)
        at = torch.from_numpy(np.where(ids >= 0, ids, ids[:, :1])).to(of_all.device)
        ids_by_portion.append(ids)
        logits_by_portion.append(of_all.gather(1, at).double().cpu().numpy())
    return Leads(np.arange(len(block)), np.concatenate(ids_by_portion), np.concatenate(logits_by_portion))


@dataclass(slots=True)
class _Page:
    """The group that is written, and what is known of all of it."""

    way: Way
    writer: GridWriter
    positions: Positions
    met: np.ndarray
    worst: float = field(default=0.0)

    @classmethod
    def of(cls, way: Way, positions: Positions, folder: Path) -> "_Page":
        """Begin the group."""
        store = way.store
        sizes = {
            EXAMPLE: store.n,
            SLOT: positions.at.shape[1],
            CANDIDATE: positions.n_candidates,
            PART: 2 + 2 * store.L,
            LAYER: store.L,
            HEAD: store.H,
        }
        row_bytes = sizes[SLOT] * sizes[CANDIDATE] * (store.d_model * 8 + sizes[PART] * 8)
        arrays = CONTRIBUTION_ARRAYS if way.heads else CONTRIBUTION_ARRAYS[:-1]
        writer = GridWriter(folder / CONTRIBUTION_GRID, arrays, sizes, rows_at_once(row_bytes // 4, store.n))
        return cls(way, writer, positions, np.zeros(way.unembedding.weight.shape[0], bool))

    @property
    def n_slots(self) -> int:
        """How many slots an example has."""
        return int(self.positions.at.shape[1])

    def columns(self, leads: Leads, split: Split) -> dict[str, np.ndarray]:
        """Return what is kept of some leads.

        Raises:
            ModelError: The parts do not add up to the model's logit differences.
        """
        if not (np.abs(split.missed) <= split.allowed(self.way)).all():
            raise ModelError(
                f"The parts miss the model's logit differences by {np.nanmax(np.abs(split.missed)):.3g}, more than "
                "rounding explains: the model is not the one of the run, or does more than its parts say."
            )
        self.worst = max(self.worst, float(np.abs(split.missed).max(initial=0.0)))
        exists = leads.ids >= 0
        self.met[np.unique(leads.ids[exists])] = True
        parts = np.where(exists[:, :, None], split.parts, 0.0).astype(np.float32)
        heads = {} if split.heads is None else {"heads": split.heads.astype(np.float32)}
        return {"candidates": leads.ids.astype(np.int32), "parts": parts, **heads}

    def write(self, block: Block, columns: Mapping[str, np.ndarray]) -> None:
        """Write a block of examples."""
        values = {"positions": self.positions.at[block.rows].astype(np.int32)}
        for name, column in columns.items():
            values[name] = block.spread(column, self.n_slots, -1 if name == "candidates" else 0)
        self.writer.write(block.rows, values)

    def finish(self, *, all_positions: bool) -> Int64[np.ndarray, " ids"]:
        """End the group, and return the token ids that stand in it."""
        parts, cap = part_names(self.way.store.L), self.way.unembedding.ending.cap
        about: dict[str, Any] = {"all_positions": all_positions, "parts": parts, "sum_error": self.worst, "of": "token"}
        self.writer.finish(about if cap is None else about | {"logit_cap": cap})
        return np.flatnonzero(self.met)


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
