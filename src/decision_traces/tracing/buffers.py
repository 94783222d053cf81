"""Storage for the distinct tensors of one forward pass, reused for the next one.

A pass is copied whole, padding and all, in one step a tensor: cast, move and store. What of it belongs to an example
(its tokens, the slots that are kept) is a view, `row`; nothing of the padding ever leaves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

from decision_traces.errors import CaptureError, NonFiniteError
from decision_traces.format.arrays import Dims, Side, Site, StorageDtype, side_of, stage_of
from decision_traces.format.stages import (
    CROSS,
    HEAD,
    KV_HEAD,
    STAGES,
    Stage,
)
from decision_traces.pieces import Pieces
from decision_traces.tracing.slots import Slots
from decision_traces.tracing.transfers import Transfers

TORCH_DTYPES: Final = {"float16": torch.float16, "float32": torch.float32}
Memory = Callable[[int], np.ndarray]
"""Number of bytes → (bytes,) uint8."""

_BITS: Final = {2: (np.int16, np.uint16, np.float16), 4: (np.int32, np.uint32, np.float32)}


def site_shape(name: str, dims: Dims) -> tuple[int, ...]:
    """Return the shape of one example of a distinct tensor: kept heads and position slots only.

    Args:
        name: The site.
        dims: The sizes of its side.
    """
    return dims.plane(stage_of(name))


def _row(name: str) -> Stage:
    """Return what is known of the stage of a distinct tensor."""
    return STAGES[stage_of(name)]


@dataclass(slots=True)
class _Kept:
    """One distinct tensor of the pass in work: `view` is the part of `store`, which only grows, that it fills."""

    store: Tensor
    view: Tensor


def _with_zeros(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor in the top left corner of a larger one."""
    whole = value.new_zeros(shape)
    whole[tuple(slice(n) for n in value.shape)] = value
    return whole


class BatchBuffers:
    """Copies of what one forward pass gave; the room is kept for the next pass, so that its pages are touched once."""

    def __init__(
        self,
        sites: Iterable[Site],
        sides: Mapping[Side, Dims],
        dtype: StorageDtype,
        *,
        pinned: bool = False,
        memory: Memory | None = None,
    ) -> None:
        """Prepare; room is taken when it is needed.

        Args:
            sites: The distinct tensors to keep; nothing else is copied.
            sides: The sizes of each side, and what of its heads and positions is kept.
            dtype: Storage type.
            pinned: Whether the model is on a CUDA device: then copies go to page-locked memory on a stream of their
                own, and the pass does not wait for them; `wait` does.
            memory: Gives room, page-locked where `pinned`; torch itself where left out.
        """
        self.sides, self.dtype = sides, TORCH_DTYPES[dtype]
        self._transfers, self._memory = Transfers() if pinned else None, memory
        empty = torch.empty(0, dtype=self.dtype)
        self.sites: dict[Site, _Kept] = {place: _Kept(empty, empty) for place in dict.fromkeys(sites)}
        self.names = frozenset(name for name, _ in self.sites)
        self.n_rows = 0
        self._lengths: Mapping[Side, tuple[int, ...]] = {}
        self._slots: Mapping[Side, Slots] = {}
        self._pads: dict[tuple[Side, int], Tensor | None] = {}

    def start(
        self,
        lengths: Mapping[Side, Sequence[int]],
        slots: Mapping[Side, Sequence[Sequence[int]]] | None = None,
    ) -> None:
        """Begin a pass.

        Args:
            lengths: Number of tokens of each row, by side.
            slots: Token position of each slot of each row (-1 for none), by side; a side that is left out keeps all.
        """
        self._lengths = {side: tuple(lengths[side]) for side in self.sides}
        self._slots = {side: Slots.of(rows, self._lengths[side]) for side, rows in (slots or {}).items()}
        self._pads.clear()
        self.n_rows = len(next(iter(self._lengths.values())))
        if self._transfers is not None:
            self._transfers.start()
        for kept in self.sites.values():
            kept.view = kept.store[:0]

    # -- writing --------------------------------------------------------------------------------------------

    def put(self, name: str, layer: int, value: Tensor) -> None:
        """Copy one tensor of the forward pass to its place.

        Args:
            name: Which distinct tensor.
            layer: Its layer.
            value: (batch, n_positions, width), or (batch, n_heads, n_positions, d_head or n_keys).

        Raises:
            CaptureError: The tensor has another shape than the format gives it.
        """
        kept = self.sites.get((name, layer))
        if kept is None:
            return
        value = self._chosen_heads(name, value)
        shape = self._shape(name, layer, value)
        if side_of(name) in self._slots and not _row(name).of_source:
            value = self._slots[side_of(name)].taken(value)
        kept.view = self._room(kept, prod(shape)).view(shape)
        if kept.view.shape != value.shape:  # a layer with fewer or narrower heads
            value = _with_zeros(value, shape)
        if self._transfers is None:
            kept.view.copy_(value)
        else:
            self._transfers.copy((name, layer), kept.view, value, self._padding(name, value))

    def _room(self, kept: _Kept, size: int) -> Tensor:
        """Return room for so many numbers; page-locked memory is taken in powers of two, as torch does anyway."""
        if len(kept.store) < size:
            pinned = self._transfers is not None
            room = 1 << (size - 1).bit_length() if pinned else size
            if self._memory is None:
                kept.store = torch.empty(room, dtype=self.dtype, pin_memory=pinned)
            else:
                kept.store = torch.from_numpy(self._memory(room * self.dtype.itemsize)).view(self.dtype)
        return kept.store[:size]

    def _padding(self, name: str, value: Tensor) -> Tensor | None:
        """Return where a tensor has no tokens, (rows, positions), on its device; None where nothing is padded."""
        of_source = _row(name).of_source
        side = "enc" if of_source else side_of(name)
        if side in self._slots and not of_source:
            return None  # zero already
        width = value.shape[-2]
        if (side, width) not in self._pads:
            behind = torch.arange(width) >= torch.tensor(self._lengths[side])[:, None]
            self._pads[side, width] = behind.to(value.device) if bool(behind.any()) else None
        return self._pads[side, width]

    def written(self) -> None:
        """Say that the pass is over; `wait` waits until its copies are there."""
        if self._transfers is not None:
            self._transfers.end()

    def wait(self) -> None:
        """Wait until everything that was copied in the pass is in memory; may be called in another thread."""
        if self._transfers is not None:
            self._transfers.wait()

    def _chosen_heads(self, name: str, value: Tensor) -> Tensor:
        axes, dims = _row(name).axes, self.sides[side_of(name)]
        if dims.heads is None or not {HEAD, KV_HEAD}.intersection(axes):
            return value
        n_heads = dims.n_heads if HEAD in axes else dims.n_kv_heads
        if value.shape[1] != n_heads:  # which of them a kept head is, or reads from, is not the same in all layers
            raise CaptureError(
                f"{name} has {value.shape[1]} heads in one layer and {n_heads} in another; some heads alone can be "
                "kept only where all layers have the same"
            )
        return value[:, list(dims.kept_heads if HEAD in axes else dims.kept_kv_heads)]

    def _shape(self, name: str, layer: int, value: Tensor) -> tuple[int, ...]:
        """Return the shape that the pass fills, or raise if the tensor does not go there."""
        side, stage = side_of(name), _row(name)
        full = site_shape(name, self.sides[side])
        heads, (slots, width) = full[:-2], full[-2:]
        at = value.dim() - 2  # the position axis
        tokens = max(self._lengths["enc" if stage.of_source else side], default=0)
        keys = max(self._lengths["enc" if stage.part is CROSS else side], default=0)
        fits = value.dim() == 1 + len(full) and value.shape[at] >= tokens
        if fits and stage.by_key:
            fits, width = value.shape[-1] >= keys, value.shape[-1]
        if fits and heads:
            fits = value.shape[1] <= heads[0] and value.shape[-1] <= width
        elif fits:
            fits = value.shape[-1] == width
        if not fits:
            belongs = (*heads, tokens, keys if stage.by_key else width)
            raise CaptureError(f"{name} of layer {layer} has shape {tuple(value.shape[1:])} where {belongs} belongs")
        if side in self._slots and not stage.of_source:
            return (self.n_rows, *heads, slots, width)
        return (self.n_rows, *heads, value.shape[at], width)

    # -- reading --------------------------------------------------------------------------------------------

    def pieces(self, place: Site, rows: Sequence[int]) -> Pieces:
        """Return what is kept of every row of a tensor, without padding and slots that no token stands in.

        Args:
            place: Which tensor.
            rows: The number of each row of the pass, for whoever gets the pieces.
        """
        name, _ = place
        side, stage = side_of(name), _row(name)
        if stage.of_source:
            kept = self._lengths["enc"]
        else:
            kept = self._slots[side].counts if side in self._slots else self._lengths[side]
        widths = self._lengths["enc" if stage.part is CROSS else side] if stage.by_key else None
        return Pieces(self.sites[place].view.numpy(), tuple(rows), kept, widths)

    def row(self, place: Site, row: int) -> np.ndarray:
        """Return what is kept of one row, a view: (n_kept, width) or (n_heads, n_kept, d_head or n_keys)."""
        return self.pieces(place, range(self.n_rows)).piece(row)

    def padded(self, place: Site) -> Tensor:
        """Return one tensor with all the room it has on disk, zero where there is no token: (rows, *example shape)."""
        whole = torch.zeros(self.n_rows, *site_shape(place[0], self.sides[side_of(place[0])]), dtype=self.dtype)
        if self.sites[place].view.numel():
            for row in range(self.n_rows):
                piece = self.row(place, row)
                whole[row][tuple(slice(n) for n in piece.shape)] = torch.from_numpy(piece)
        return whole

    def stack(self, name: str) -> Tensor:
        """Return one distinct tensor of all its layers, padded with zeros: (layers, rows, ...)."""
        return torch.stack([self.padded(place) for place in self.sites if place[0] == name])

    # -- looking at the values ------------------------------------------------------------------------------

    def peak(self, place: Site) -> float:
        """Return the largest absolute value of a tensor over its tokens; NaN where one is not a number."""
        if self._transfers is not None:
            return self._transfers.peaks[place]
        pieces = self.pieces(place, range(self.n_rows))
        return peak(*(pieces.piece(i) for i in range(self.n_rows)))

    def peaks(self) -> dict[Site, float]:
        """Return the largest absolute value of every tensor that the pass gave."""
        return {place: self.peak(place) for place, kept in self.sites.items() if kept.view.numel()}

    def check_finite(self, largest: float | None = None) -> None:
        """Raise if a token's value is not finite, or too large.

        Args:
            largest: Largest value that can be stored; that of the storage type where left out.

        Raises:
            NonFiniteError: Names the tensor, the layer, the largest value and the advice.
        """
        limit = torch.finfo(self.dtype).max if largest is None else largest
        peaks = self.peaks()
        bad = [
            (_row(name).behind_layers, layer, _row(name).order, name)
            for (name, layer), value in peaks.items()
            if not value <= limit
        ]
        if bad:
            _, layer, _, name = min(bad)  # the first in order of computation
            raise _too_large(name, layer, peaks[(name, layer)], limit)


def peak(*pieces: np.ndarray) -> float:
    """Return the largest absolute value of some arrays of one type; NaN where one is not a number.

    The bits of a float, read as an integer, are ordered by magnitude: as signed for positive numbers, as unsigned
    among negative ones. NumPy finds the largest integer several times faster than the largest half-precision number.
    """
    signed, unsigned, kind = _BITS[pieces[0].itemsize]
    sign = 1 << (8 * pieces[0].itemsize - 1)
    positive, negative = 0, sign
    for piece in pieces:
        if piece.size:
            positive = max(positive, int(np.maximum.reduce(piece.view(signed), axis=None)))
            negative = max(negative, int(np.maximum.reduce(piece.view(unsigned), axis=None)))
    return float(np.array(max(positive, negative - sign), unsigned).view(kind))


def _too_large(name: str, layer: int, value: float, limit: float) -> NonFiniteError:
    stage = stage_of(name)
    where = stage if STAGES[stage].once else f"{stage} of layer {layer}"
    if value != value or value == float("inf"):
        return NonFiniteError(
            f"The model computed {'NaN' if value != value else 'an infinite value'} in {where}. Its weights may be "
            "damaged, or --model_dtype too narrow for it (try float32). The run was stopped; nothing was committed."
        )
    dtype = "float16" if limit == torch.finfo(torch.float16).max else "float32"
    return NonFiniteError(
        f"{where} reaches {value:,.0f}, more than {dtype} holds ({limit:,.0f}). Run again with --dtype float32. "
        "Nothing was committed."
    )
