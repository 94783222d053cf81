"""The lead of a target over other tokens, split into what each part of a decoder wrote.

A contribution is linear in the direction it is measured along: the difference of two rows of the unembedding, pulled
back through the final norm, which is held fixed at the state that it reads (Elhage et al. 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from decision_traces.analysis.attribution.heads import HeadSplit, head_outputs
from decision_traces.analysis.attribution.way import Way
from decision_traces.analysis.states import Point, Reader

ROUNDINGS: Final = 16
"""How many roundings a sum may be off before it is an error. Errors of a sum of roundings are far smaller; a norm, a
bias or a layer left out misses by far more."""


@dataclass(frozen=True, slots=True)
class Leads:
    """Leads at some of the positions that are read.

    Attributes:
        picked: (m,) which of them.
        ids: (m, k) tokens; the first leads over each, itself among them; -1 repeats the first.
        logits: (m, k) theirs, before a cap.
    """

    picked: Int64[np.ndarray, " m"]
    ids: Int64[np.ndarray, "m k"]
    logits: Float64[np.ndarray, "m k"]


@dataclass(frozen=True, slots=True)
class Split:
    """Leads, split up; all in logits.

    Attributes:
        parts: (m, k, part) what each part adds, as `grids.part_names` has them.
        missed: (m, k) how far their sum is from the lead.
        rounded: (m, k) the size of what is rounded on the way.
        heads: (m, k, layer, head) what each head adds, None where attention is not split.
        attn_bias: (m, k, layer) and what the biases behind them add.
    """

    parts: Float64[np.ndarray, "m k part"]
    missed: Float64[np.ndarray, "m k"]
    rounded: Float64[np.ndarray, "m k"]
    heads: Float64[np.ndarray, "m k layer head"] | None
    attn_bias: Float64[np.ndarray, "m k layer"] | None

    def allowed(self, way: Way) -> Float64[np.ndarray, "m k"]:
        """Return how much rounding explains of what is missed."""
        allowed: np.ndarray = ROUNDINGS * way.rounding * self.rounded
        return allowed


def split_leads(way: Way, reader: Reader, final: Float[np.ndarray, "n d_model"], leads: Sequence[Leads]) -> list[Split]:
    """Split up leads at some positions; every state of the stream is read once.

    Args:
        way: From the stream to the logits.
        reader: Of n positions.
        final: What the final norm reads there (`Way.final`).
        leads: What to split: several lists of leads, one `Split` each.
    """
    end = final.astype(np.float64)
    scale = way.norm.scale_at(end)
    along = [_Directions.of(way, one_leads, end, scale) for one_leads in leads]

    def project(point: Point) -> Float64[np.ndarray, " n"]:
        state = end if point == way.layers[-1].after else reader.read(point).astype(np.float64)
        return np.concatenate([one.project(state).ravel() for one in along])

    start = before = project(way.embed)
    parts = [start]
    for layer in way.layers:
        attn, mlp, before = layer.along(project, before)
        parts += [attn, mlp]
    heads = None if way.heads is None else _heads(way, reader, along)
    ends = np.cumsum([one.leads.ids.size for one in along])[:-1]
    by_leads = zip(*(np.split(part, ends) for part in parts), strict=True)
    return [
        one.split(sums, None if heads is None else heads[i])
        for i, (one, sums) in enumerate(zip(along, by_leads, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class _Directions:
    """What to project writes on.

    Attributes:
        leads: What for.
        pulled: (m, k, d_model) differences of rows of the unembedding, pulled back through the norm.
        remainder: (m, k) what the biases of norm and unembedding add.
        rounded: (m, k) the size of what is rounded on the way.
    """

    leads: Leads
    pulled: Float64[np.ndarray, "m k d_model"]
    remainder: Float64[np.ndarray, "m k"]
    rounded: Float64[np.ndarray, "m k"]

    @classmethod
    def of(
        cls, way: Way, leads: Leads, final: Float64[np.ndarray, "n d_model"], scale: Float64[np.ndarray, " n"]
    ) -> "_Directions":
        m, width = leads.ids.shape
        final, scale = final[leads.picked], scale[leads.picked]
        at = np.where(leads.ids >= 0, leads.ids, leads.ids[:, :1])
        rows, bias = way.unembedding.token_rows(at.ravel())
        rows, bias = rows.reshape(m, width, -1), bias.reshape(m, width)
        flat = (rows[:, :1] - rows).reshape(m * width, -1)
        pulled = way.norm.pull(flat, np.repeat(scale, width)).reshape(m, width, -1)
        remainder = (flat @ way.norm.bias).reshape(m, width) + bias[:, :1] - bias
        # Each product that a logit sums up is rounded for itself; their errors add like random steps.
        terms = np.square(scale[:, None] * way.norm.weight * final)[:, None]
        products = terms * (np.square(rows[:, :1]) + np.square(rows))
        rounded = np.sqrt(products.sum(2)) + np.abs(leads.logits[:, :1]) + np.abs(leads.logits)
        return cls(leads, pulled, remainder, rounded)

    def project(self, state: Float64[np.ndarray, "n d_model"]) -> Float64[np.ndarray, "m k"]:
        """Return how far a state, or a write, is along each direction."""
        along: np.ndarray = np.einsum("md,mkd->mk", state[self.leads.picked], self.pulled)
        return along

    def split(self, parts: Sequence[Float64[np.ndarray, " mk"]], heads: Sequence[HeadSplit] | None) -> Split:
        """Return the leads, split up.

        Args:
            parts: What each part adds, along all directions.
            heads: The same of the heads, layer by layer.
        """
        shape = self.leads.ids.shape
        split = np.stack([*(part.reshape(shape) for part in parts), self.remainder], axis=2)
        missed = split.sum(2) - (self.leads.logits[:, :1] - self.leads.logits)
        if heads is None:
            return Split(split, missed, self.rounded, None, None)
        of_heads = np.stack([one.heads.reshape(*shape, -1) for one in heads], axis=2)
        of_bias = np.stack([one.bias.reshape(shape) for one in heads], axis=2)
        return Split(split, missed, self.rounded, of_heads, of_bias)


def _heads(way: Way, reader: Reader, along: Sequence[_Directions]) -> list[list[HeadSplit]]:
    """Return what each head adds along all directions: a list a lead, one entry a layer."""
    splits: list[list[HeadSplit]] = [[] for _ in along]
    for layer, writer in enumerate(way.heads or ()):
        outputs = head_outputs(way.store, reader, layer)
        for one, split in zip(along, splits, strict=True):
            m, width, d_model = one.pulled.shape
            selected = outputs[torch.from_numpy(one.leads.picked)].repeat_interleave(width, dim=0)
            split.append(writer.split(selected, one.pulled.reshape(m * width, d_model)))
    return splits
