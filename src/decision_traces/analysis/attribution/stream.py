"""What each layer of a decoder wrote into its stream, from whatever a run holds of it. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from decision_traces.analysis.requirements import need_whole
from decision_traces.analysis.states import Point, path_of
from decision_traces.store import TraceStore

_WHAT: Final = "attribution"
Along = Float64[np.ndarray, " k"]


@dataclass(frozen=True, slots=True)
class LayerWrites:
    """Where a run holds what one layer wrote: the states between which it did, or what attention and MLP wrote.

    Attributes:
        before: The state that the layer read; None where that is not held.
        middle: The state between attention and MLP; None where what they wrote is taken instead.
        after: The state behind the layer; None where it is the sum of the others.
        attn, mlp: What attention and MLP wrote; None where the states tell it.
    """

    before: Point | None
    middle: Point | None
    after: Point | None
    attn: Point | None
    mlp: Point | None

    @property
    def points(self) -> list[Point]:
        """All that is read of it."""
        candidates = (self.before if self.after is None else None, self.middle, self.after, self.attn, self.mlp)
        return [point for point in candidates if point is not None]

    def along(self, project: Callable[[Point], Along], before: Along) -> tuple[Along, Along, Along]:
        """Return what attention and MLP wrote along some directions, and how far along them the stream is then.

        Args:
            project: A state or a write → how far along the directions it is.
            before: How far the stream was before the layer.
        """
        after = None if self.after is None else project(self.after)
        if self.middle is not None and after is not None:
            middle = project(self.middle)
            return middle - before, after - middle, after
        attn = None if self.attn is None else project(self.attn)
        mlp = None if self.mlp is None or (attn is not None and after is not None) else project(self.mlp)
        if attn is None:
            assert mlp is not None and after is not None
            attn = after - before - mlp
        if mlp is None:
            assert after is not None
            mlp = after - (before + attn)
        return attn, mlp, before + attn + mlp if after is None else after


def layer_writes(store: TraceStore) -> tuple[Point, tuple[LayerWrites, ...]]:
    """Return where a run holds what its embedding and its layers wrote.

    `resid` holds all of it. Where it, or the state between attention and MLP, is missing, `hidden` with `attn_out` and
    `mlp_out` (or only `attn_out`, where every state behind a layer is there) take its place.

    Raises:
        NotCapturedError: The run holds neither.
        UsageError: It does not keep all layers, or not every layer has attention.
    """
    attn, mlp, hidden = (_held(store, f"dec_{name}") for name in ("attn_out", "mlp_out", "hidden"))
    after = _held(store, "dec_res_post_mlp") if store.has("dec_res_post_mlp") else [*hidden[1:], None]
    summed = after[-1] is None  # the last of `hidden` is normed
    if None in after[:-1] or (summed and None in (hidden[-1], attn[-1], mlp[-1])):
        path_of(store, "post_mlp")  # raises an error that names what is missing
    middle: Sequence[Point | None] = [None] * store.L
    if (store.has("dec_res_post_attn") and not summed) or (None in attn and None in mlp):
        middle = path_of(store, "post_attn")
    embed = hidden[0] if summed and hidden[0] is not None else Point(store.array("dec_res_embed"), None)
    layers = zip(hidden, middle, after, attn, mlp, strict=True)
    return embed, tuple(_layer(*points) for points in layers)


def _layer(*points: Point | None) -> LayerWrites:
    """Return a layer; where the state in its middle is held, what was written is not read."""
    before, middle, after, attn, mlp = points
    return LayerWrites(before, middle, after, *((attn, mlp) if middle is None else (None, None)))


def _held(store: TraceStore, name: str) -> list[Point | None]:
    """Return the first points of an array, one a layer; None of an array that the run does not hold."""
    if not store.has(name):
        return [None] * store.L
    array = store.array(name)
    need_whole(array, _WHAT)
    return [Point(array, layer) for layer in range(store.L)]
