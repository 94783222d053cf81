"""Preallocated storage for the distinct tensors of one block of examples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from decision_traces.errors import CaptureError, NonFiniteError
from decision_traces.schema import (
    ATTN,
    ATTN_OUT,
    CROSS_ATTN,
    CROSS_ATTN_OUT,
    CROSS_HEAD_OUT,
    CROSS_K,
    CROSS_Q,
    CROSS_V,
    EMBED,
    FINAL,
    HEAD_OUT,
    KEY,
    LOGITS,
    MLP_ACT,
    MLP_OUT,
    POSITION,
    POST_ATTN,
    POST_CROSS,
    POST_MLP,
    Dims,
    K,
    Q,
    Side,
    StorageDtype,
    V,
    side_of,
    stage_of,
)

TORCH_DTYPES: Final = {"float16": torch.float16, "float32": torch.float32}
Site = tuple[str, int]
"""A distinct tensor of the forward pass: its name (see `schema.site`) and layer."""

_ORDER: Final = (
    EMBED, Q, K, V, ATTN, HEAD_OUT, ATTN_OUT, POST_ATTN, CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN, CROSS_HEAD_OUT,
    CROSS_ATTN_OUT, POST_CROSS, MLP_ACT, MLP_OUT, POST_MLP, FINAL, LOGITS,
)  # fmt: skip
_QUERY_HEADS: Final = frozenset({Q, ATTN, HEAD_OUT, CROSS_Q, CROSS_ATTN, CROSS_HEAD_OUT})
_KV_HEADS: Final = frozenset({K, V, CROSS_K, CROSS_V})
_BY_HEAD: Final = _QUERY_HEADS | _KV_HEADS
_ONCE: Final = frozenset({EMBED, FINAL, LOGITS})


def site_shape(name: str, dims: Dims) -> tuple[int, ...]:
    """Return the shape of one example of a distinct tensor: kept heads and position slots only.

    Args:
        name: The site.
        dims: The sizes of its side.
    """
    stage, slots, value = stage_of(name), dims.slots(POSITION), dims.d_head if dims.d_value is None else dims.d_value
    heads, kv_heads = len(dims.kept_heads), len(dims.kept_kv_heads)
    shapes = {
        Q: (heads, slots, dims.d_head),
        CROSS_Q: (heads, slots, dims.d_head),
        K: (kv_heads, slots, dims.d_head),
        V: (kv_heads, slots, value),
        CROSS_K: (kv_heads, dims.n_source, dims.d_head),
        CROSS_V: (kv_heads, dims.n_source, value),
        ATTN: (heads, slots, dims.slots(KEY)),
        CROSS_ATTN: (heads, slots, dims.n_source),
        HEAD_OUT: (heads, slots, value),
        CROSS_HEAD_OUT: (heads, slots, value),
        MLP_ACT: (slots, dims.d_mlp),
        LOGITS: (slots, dims.vocab_size),
    }
    return shapes.get(stage, (slots, dims.d_model))


@dataclass(slots=True)
class SiteBuffer:
    """One distinct tensor for all examples of a block.

    Attributes:
        data: (rows, *example shape) in the storage type; zero where there is no token.
        peak: Largest absolute value written, in float32 (NaN if a NaN was).
    """

    data: Tensor
    peak: float = 0.0


class BlockBuffers:
    """The storage of one block, reused for the next one; padding is zero at all times."""

    def __init__(self, sites: Iterable[Site], sides: Mapping[Side, Dims], rows: int, dtype: StorageDtype) -> None:
        """Allocate.

        Args:
            sites: The distinct tensors to keep; nothing else is copied.
            sides: The sizes of each side, and what of its heads and positions is kept.
            rows: Examples in a block (each choice counts).
            dtype: Storage type.
        """
        self.sides = sides
        kind = TORCH_DTYPES[dtype]
        self.sites: dict[Site, SiteBuffer] = {
            place: SiteBuffer(torch.zeros(rows, *site_shape(place[0], sides[side_of(place[0])]), dtype=kind))
            for place in dict.fromkeys(sites)
        }
        self.names = frozenset(name for name, _ in self.sites)
        self._lengths: dict[Side, list[int]] = {side: [0] * rows for side in sides}
        self._slots: Mapping[Side, Sequence[Sequence[int]]] = {}
        self._extremes: list[tuple[Site, Tensor, Tensor]] = []  # smallest and largest value of each piece

    def start(
        self,
        lengths: Mapping[Side, Sequence[int]],
        slots: Mapping[Side, Sequence[Sequence[int]]] | None = None,
    ) -> None:
        """Begin a block; what longer texts left behind is zeroed, and the peaks.

        Args:
            lengths: Number of tokens of each row, by side.
            slots: Token position of each slot of each row (-1 for none), by side; a side that is left out keeps all.
        """
        self._slots = slots or {}
        for buffer in self.sites.values():
            buffer.peak = 0.0
        rows = len(next(iter(self._lengths.values())))
        given = {side: [*lengths[side], *[0] * (rows - len(lengths[side]))] for side in self._lengths}
        for row in range(rows):
            before = {side: self._lengths[side][row] for side in given}
            if any(given[side][row] < before[side] for side in given) or self._slots:
                for place, buffer in self.sites.items():
                    self._zero(place[0], buffer.data[row], given[side_of(place[0])][row], before[side_of(place[0])])
        self._lengths = given

    def _zero(self, name: str, row: Tensor, start: int, stop: int) -> None:
        stage = stage_of(name)
        if self._slots or stage in {CROSS_ATTN, CROSS_K, CROSS_V}:
            row.zero_()
        elif stage in _BY_HEAD:
            row[:, start:stop] = 0
            if stage == ATTN:
                row[:, :start, start:stop] = 0
        else:
            row[start:stop] = 0

    def put(self, name: str, layer: int, rows: Sequence[int], value: Tensor) -> None:
        """Copy one tensor of a forward pass to its place: cast, move and store in one pass, tokens only.

        Args:
            name: Which distinct tensor.
            layer: Its layer.
            rows: Row in the block of each example of the batch.
            value: (batch, n_positions, width), or (batch, n_heads, n_positions, d_head or n_keys).

        Raises:
            CaptureError: The tensor has another shape than the format gives it.
        """
        buffer = self.sites.get((name, layer))
        if buffer is None:
            return
        for i, row in enumerate(rows):
            piece, place = self._piece(name, row, value[i]), self._place(name, row, buffer.data[row])
            if piece.shape != place.shape:
                exact = {ATTN: (1, 2), CROSS_ATTN: (1, 2)}.get(stage_of(name), (1,))  # positions must be there
                fits = stage_of(name) in _BY_HEAD and all(p <= q for p, q in zip(piece.shape, place.shape, strict=True))
                if not fits or any(piece.shape[axis] != place.shape[axis] for axis in exact):
                    shapes = f"{tuple(piece.shape)} where {tuple(place.shape)} belongs"
                    raise CaptureError(f"{name} of layer {layer} has shape {shapes}")
                place = place[tuple(slice(n) for n in piece.shape)]  # a layer with fewer or narrower heads
            place.copy_(piece)
            if piece.numel():
                self._extremes.append(((name, layer), *torch.aminmax(piece)))

    def _piece(self, name: str, row: int, value: Tensor) -> Tensor:
        """Return what is kept of one example's tensor: its tokens, the chosen heads, the chosen positions."""
        side, stage = side_of(name), stage_of(name)
        dims, n = self.sides[side], self._lengths[side][row]
        if stage in _BY_HEAD and dims.heads is not None:
            n_heads = dims.n_heads if stage in _QUERY_HEADS else dims.n_kv_heads
            if value.shape[0] != n_heads:  # which of them a kept head is, or reads from, is not the same in all layers
                raise CaptureError(
                    f"{name} has {value.shape[0]} heads in one layer and {n_heads} in another; some heads alone can be "
                    "kept only where all layers have the same"
                )
            value = value[list(dims.kept_heads if stage in _QUERY_HEADS else dims.kept_kv_heads)]
        axis = 1 if stage in _BY_HEAD else 0
        if stage in {CROSS_K, CROSS_V}:
            return value[:, : self._lengths["enc"][row]]
        if stage in {ATTN, CROSS_ATTN}:
            value = value[:, :, : n if stage == ATTN else self._lengths["enc"][row]]
        if side not in self._slots:
            return value.narrow(axis, 0, n)
        at = [p for p in self._slots[side][row] if 0 <= p < n]
        return value.index_select(axis, torch.tensor(at, dtype=torch.long, device=value.device))

    def _place(self, name: str, row: int, target: Tensor) -> Tensor:
        """Return where a piece belongs in its example's room."""
        side, stage = side_of(name), stage_of(name)
        axis, n = 1 if stage in _BY_HEAD else 0, self._lengths[side][row]
        if stage in {CROSS_K, CROSS_V}:
            return target[:, : self._lengths["enc"][row]]
        if stage in {ATTN, CROSS_ATTN}:
            target = target[:, :, : n if stage == ATTN else self._lengths["enc"][row]]
        if side not in self._slots:
            return target.narrow(axis, 0, n)
        # Slots without a token stand behind the others, or there is only one.
        return target.narrow(axis, 0, sum(0 <= p < n for p in self._slots[side][row]))

    def stack(self, name: str) -> Tensor:
        """Return one distinct tensor of all its layers: (layers, rows, ...)."""
        return torch.stack([buffer.data for (other, _), buffer in self.sites.items() if other == name])

    def check_finite(self) -> None:
        """Raise if anything written so far is not finite or does not fit the storage type.

        Raises:
            NonFiniteError: Names the tensor, the layer, the largest value and the advice.
        """
        self._note_peaks()
        bad = [
            (stage_of(name) in {FINAL, LOGITS}, layer, _ORDER.index(stage_of(name)), name)
            for (name, layer), buffer in self.sites.items()
            if not buffer.peak <= torch.finfo(buffer.data.dtype).max
        ]
        if bad:
            _, layer, _, name = min(bad)  # the first in order of computation
            buffer = self.sites[(name, layer)]
            raise _too_large(name, layer, buffer.peak, buffer.data.dtype)

    def _note_peaks(self) -> None:
        """Fold the extremes gathered since the last time into the peaks, in one step for all pieces."""
        if not self._extremes:
            return
        lows = torch.stack([low.float() for _, low, _ in self._extremes]).cpu()
        highs = torch.stack([high.float() for _, _, high in self._extremes]).cpu()
        for (place, *_), largest in zip(self._extremes, torch.maximum(highs, -lows).numpy(), strict=True):
            buffer = self.sites[place]
            buffer.peak = float(np.maximum(np.float32(buffer.peak), largest))  # keeps a NaN
        self._extremes.clear()


def _too_large(name: str, layer: int, peak: float, dtype: torch.dtype) -> NonFiniteError:
    stage = stage_of(name)
    where = stage if stage in _ONCE else f"{stage} of layer {layer}"
    if peak != peak or peak == float("inf"):
        return NonFiniteError(
            f"The model computed {'NaN' if peak != peak else 'an infinite value'} in {where}. Its weights may be "
            "damaged, or --model_dtype too narrow for it (try float32). The run was stopped; nothing was committed."
        )
    return NonFiniteError(
        f"{where} reaches {peak:,.0f}, more than {str(dtype).removeprefix('torch.')} holds "
        f"({torch.finfo(dtype).max:,.0f}). Run again with --dtype float32. Nothing was committed."
    )
