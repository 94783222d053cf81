"""Everything between the parts of a decoder and its logits: where a run holds what each part wrote."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from decision_traces.analysis.attribution.frozen import FrozenNorm, freeze
from decision_traces.analysis.attribution.heads import HeadWriter, head_points
from decision_traces.analysis.attribution.stream import LayerWrites, layer_writes
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.requirements import refuse_unsplit
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Point
from decision_traces.store import TraceStore

Read = Callable[[Point], np.ndarray]
"""A state of the stream → that of some positions, (m, d_model)."""


@dataclass(frozen=True, slots=True)
class Way:
    """What leads from the stream of a run to the logits of its model, and the states on it.

    Attributes:
        store: The run.
        unembedding: The model's final norm and output embedding.
        norm: The final norm, its parts known.
        embed: What the embedding wrote.
        layers: What each layer wrote.
        heads: Each layer's way from heads to the stream, to split attention by head; None not to.
        rounding: See `rounding.resolution`.
    """

    store: TraceStore
    unembedding: Unembedding
    norm: FrozenNorm
    embed: Point
    layers: tuple[LayerWrites, ...]
    heads: tuple[HeadWriter, ...] | None
    rounding: float

    @classmethod
    def of(cls, store: TraceStore, unembedding: Unembedding, heads: tuple[HeadWriter, ...] | None) -> "Way":
        """Find the way in a run.

        Raises:
            NotCapturedError: The run did not capture what is needed.
            UnsupportedArchitecture: Its logits are no sum of what the parts of its model wrote.
            UsageError: It does not keep all layers, or not every layer has attention.
        """
        refuse_unsplit(store, bends=not unembedding.is_linear)
        embed, layers = layer_writes(store)
        norm = freeze(unembedding.norm, store.d_model)
        return cls(store, unembedding, norm, embed, layers, heads, resolution(store))

    @property
    def points(self) -> list[Point]:
        """All that is read."""
        heads = head_points(self.store) if self.heads else ()
        return [self.embed, *(point for layer in self.layers for point in layer.points), *heads]

    def final(self, read: Read) -> Float32[np.ndarray, "m d_model"]:
        """Return the state that the final norm reads."""
        last = self.layers[-1]
        if last.after is not None:
            return read(last.after).astype(np.float32, copy=False)
        assert last.before is not None and last.attn is not None and last.mlp is not None
        before, attn, mlp = (read(point).astype(np.float64) for point in (last.before, last.attn, last.mlp))
        final: np.ndarray = (before + attn + mlp).astype(np.float32)
        return final
