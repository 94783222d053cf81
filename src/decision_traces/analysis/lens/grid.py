"""The logit lens at many positions of every example, with the most probable tokens: `lens.zarr`, for the page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.grids import CANDIDATE, LENS_ARRAYS, SLOT, TOP, GridWriter, rows_at_once
from decision_traces.analysis.lens.logit_lens import DecisionTable, Followed, with_competitors
from decision_traces.analysis.lens.look import Ask, Columns, look
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.lens.vocabulary import Vocabulary
from decision_traces.analysis.positions import Block, Positions, block_of, positions_of
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import LensTrajectories
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import path_of
from decision_traces.format.analyses import LENS_GRID
from decision_traces.format.stages import DEPTH, EXAMPLE
from decision_traces.memory import freed_memory_kept
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Kind

PAGE_TOP_K: Final = 10
"""How many of the most probable tokens the page lists."""
_SCALE_QUANTILE: Final = 0.99
_MISSING: Final = {"candidates": -1, "top_ids": -1, "rank": -1}


@freed_memory_kept()
def lens_and_grid(
    store: TraceStore,
    unembedding: Unembedding,
    folder: Path,
    *,
    top_k: int = 5,
    kind: Kind | None = None,
    all_positions: bool = False,
    progress: Progress | None = None,
) -> tuple[LensTrajectories, Int64[np.ndarray, " ids"]]:
    """Look through the lens at many positions: keep all of that in a folder, and return that of the decisions.

    Method: as `logit_lens`, which gives the same for the decisions only: no state goes through the unembedding twice.

    Memory: the trajectories, states and results of some examples (a few MB), and the logits of some rows (64 MB on a
    CPU, a few times over).

    Args:
        store: A decoder run that captured `hidden` or `resid`.
        unembedding: The model's final norm and output embedding.
        folder: Where the group `lens.zarr` goes; see `new_result`.
        top_k: How many of the most probable tokens to keep of every decision; the page gets ten or more.
        kind: Which decisions to return; the run's own where left out.
        all_positions: Every position that the run keeps, and not only those of its decisions.
        progress: Called with (examples done, of how many).

    Returns:
        The trajectories of the decisions, and the token ids that stand in the folder.

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        SelectionError: The run does not keep the position of some decision.
        UsageError: The run has no such decision at one position.
        DataError: No example of the run has a prediction.
        ModelError: The end is not the model's own prediction, so that nothing before it can be trusted.
    """
    decisions = with_competitors(decisions_of(store, kind), store, unembedding)
    positions, path = positions_of(store, all_positions=all_positions), path_of(store, "hidden")
    slots, rounding, table = positions.slots_of(decisions), resolution(store), DecisionTable(decisions, top_k)
    page = _Page.of(store, positions, unembedding, folder, len(path), max(PAGE_TOP_K, top_k))
    for start in range(0, store.n, page.writer.rows):
        block, portions = block_of(positions, slice(start, min(start + page.writer.rows, store.n))), []
        here, chosen = block.chosen(decisions, slots, page.n_slots)
        states = [(torch.from_numpy(block.read(point)), point.normed) for point in path] if len(block) else []
        for rows in unembedding.portions(len(block)):
            first, last = np.searchsorted(chosen, (rows.start, rows.stop))
            mine = slice(here.start + int(first), here.start + int(last))
            query = _Query(block.part(rows), Followed(decisions, mine, chosen[first:last] - rows.start, rounding))
            columns = look(unembedding, [(state[rows], normed) for state, normed in states], page.n_top, query.begin)
            table.add(columns, query.followed)
            portions.append(query.for_page(columns))
        page.write(block, portions)
        if progress is not None:
            progress(block.rows.stop, store.n)
    return table.result("hidden"), page.finish(all_positions=all_positions)


@dataclass(slots=True)
class _Query:
    """What the lens is asked about some positions: their candidates, and the decisions among them."""

    positions: Block
    followed: Followed
    candidates: Int64[np.ndarray, "m candidate"] = field(init=False)

    def begin(self, end: Tensor, last: Sequence[tuple[Vocabulary, slice]]) -> Ask:
        self.candidates = self.positions.candidates(end).astype(np.int64)
        self.followed.begin(end, last)
        return self.ask

    def ask(self, one: Vocabulary, strip: slice) -> Columns:
        ids = self.candidates[strip]
        probs = np.where(ids >= 0, one.prob(ids.clip(0)), np.float32(0))
        columns = {"prob": probs[:, 0], "rank": one.rank(ids[:, 0]).astype(np.int32), "candidate_probs": probs}
        return columns | self.followed.ask(one, strip)

    def for_page(self, columns: Columns) -> Columns:
        """Return what the page gets, as it is stored."""
        return {
            **{name: columns[name] for name in ("prob", "rank", "entropy", "top_ids")},
            "kl": columns["kl"].clip(0),
            **{name: columns[name].astype(np.float16) for name in ("top_probs", "candidate_probs")},
            "candidates": self.candidates.astype(np.int32),
            "known": (self.positions.true_id >= 0).astype(np.int8),
        }


@dataclass(slots=True)
class _Page:
    """The group that is written, and what is known of all of it."""

    writer: GridWriter
    positions: Positions
    n_top: int
    met: np.ndarray
    scales: dict[str, float] = field(default_factory=lambda: {"entropy": 0.0, "kl": 0.0})

    @classmethod
    def of(
        cls, store: TraceStore, positions: Positions, unembedding: Unembedding, folder: Path, depths: int, top_k: int
    ) -> "_Page":
        """Begin the group."""
        n_slots, vocab = positions.at.shape[1], unembedding.weight.shape[0]
        sizes = {
            EXAMPLE: store.n,
            SLOT: n_slots,
            DEPTH: depths,
            CANDIDATE: positions.n_candidates,
            TOP: min(top_k, vocab),
        }
        row_bytes = n_slots * depths * (store.d_model * 2 + top_k * 6 + 16)
        writer = GridWriter(folder / LENS_GRID, LENS_ARRAYS, sizes, rows_at_once(row_bytes, store.n))
        return cls(writer, positions, sizes[TOP], np.zeros(vocab, bool))

    @property
    def n_slots(self) -> int:
        """How many slots an example has."""
        return int(self.positions.at.shape[1])

    def write(self, block: Block, portions: Sequence[Columns]) -> None:
        """Write a block of examples, of which so much was found, portion by portion."""
        values = {"positions": self.positions.at[block.rows].astype(np.int32)}
        columns = {
            name: np.concatenate([part[name] for part in portions]) for name in (portions[0] if portions else ())
        }
        for name in ("top_ids", "candidates") if portions else ():
            self.met[np.unique(columns[name][columns[name] >= 0])] = True
        for name in self.scales if portions else ():
            self.scales[name] = max(self.scales[name], float(np.quantile(columns[name], _SCALE_QUANTILE)))
        for name, column in columns.items():
            spread = block.spread(column, self.n_slots, _MISSING.get(name, 0))  # (row, slot, ...)
            values[name] = spread if name in {"candidates", "known"} else np.moveaxis(spread, 1, 2)
        self.writer.write(block.rows, values)

    def finish(self, *, all_positions: bool) -> Int64[np.ndarray, " ids"]:
        """End the group, and return the token ids that stand in it."""
        about = {"all_positions": all_positions, "scale": self.scales}
        self.writer.finish(about | {"stage": "hidden", "vocab_size": len(self.met)})
        return np.flatnonzero(self.met)
