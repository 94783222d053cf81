"""Preallocated storage for the distinct tensors of one block of examples."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from decision_traces.errors import NonFiniteError
from decision_traces.schema import (
    ATTN,
    ATTN_OUT,
    EMBED,
    FINAL,
    POST_ATTN,
    POST_MLP,
    ArraySpec,
    Dims,
    K,
    Q,
    StorageDtype,
    V,
)

TORCH_DTYPES: Final = {"float16": torch.float16, "float32": torch.float32}
_ROW_FIRST: Final = frozenset({EMBED, ATTN_OUT, POST_ATTN, POST_MLP, FINAL})
_ORDER: Final = (EMBED, Q, K, V, ATTN, ATTN_OUT, POST_ATTN, POST_MLP, FINAL)


def site_shape(site: str, dims: Dims) -> tuple[int, ...]:
    """Return (layers, *one example's shape) of a distinct tensor."""
    t = dims.n_positions
    shapes = {
        EMBED: (1, t, dims.d_model),
        FINAL: (1, t, dims.d_model),
        ATTN_OUT: (dims.n_layers, t, dims.d_model),
        POST_ATTN: (dims.n_layers, t, dims.d_model),
        POST_MLP: (dims.n_layers, t, dims.d_model),
        Q: (dims.n_layers, dims.n_heads, t, dims.d_head),
        K: (dims.n_layers, dims.n_kv_heads, t, dims.d_head),
        V: (dims.n_layers, dims.n_kv_heads, t, dims.d_head),
        ATTN: (dims.n_layers, dims.n_heads, t, t),
    }
    return shapes[site]


def sites_of(specs: Iterable[ArraySpec], n_layers: int) -> tuple[str, ...]:
    """Return the distinct tensors that a choice of arrays needs, each once."""
    wanted: dict[str, None] = {}
    for spec in specs:
        for index in range(n_layers + 1 if spec.stage == "hidden" else n_layers):
            wanted.setdefault(spec.source(index, n_layers)[0])
    return tuple(wanted)


@dataclass(slots=True)
class SiteBuffer:
    """One distinct tensor for all examples of a block.

    Attributes:
        data: (layers, rows, *example shape) in the storage type; zero where there is no token.
        peak: (layers,) largest absolute value written, in float32 (NaN if a NaN was).
        has_positions_first: Whether an example's shape begins with the position axis (else with the head axis).
    """

    data: Tensor
    peak: Tensor
    has_positions_first: bool


class BlockBuffers:
    """The storage of one block, reused for the next one; padding is zero at all times."""

    def __init__(
        self,
        sites: Sequence[str],
        dims: Dims,
        rows: int,
        dtype: StorageDtype,
        kept: Container[tuple[str, int]] | None = None,
    ) -> None:
        """Allocate.

        Args:
            sites: The distinct tensors.
            dims: The run's sizes.
            rows: Examples in a block.
            dtype: Storage type.
            kept: The (site, layer) pairs that an array stores; others are not copied. None keeps all.
        """
        self._kept = kept
        self.sites = {site: _allocate(site, dims, rows, TORCH_DTYPES[dtype]) for site in sites}
        self._filled = [0] * rows
        self._extremes: list[tuple[str, int, Tensor, Tensor]] = []  # smallest and largest value of each piece

    def start(self, lengths: Sequence[int]) -> None:
        """Begin a block with these text lengths; what longer texts left behind is zeroed, and the peaks."""
        for buffer in self.sites.values():
            buffer.peak.zero_()
        for row in range(len(self._filled)):
            length = lengths[row] if row < len(lengths) else 0
            if length < self._filled[row]:
                for site in self.sites:
                    self._zero(site, row, length, self._filled[row])
            self._filled[row] = length

    def _zero(self, site: str, row: int, start: int, stop: int) -> None:
        data = self.sites[site].data
        if self.sites[site].has_positions_first:
            data[:, row, start:stop] = 0
            return
        data[:, row, :, start:stop] = 0
        if site == ATTN:
            data[:, row, :, :start, start:stop] = 0

    def put(self, site: str, layer: int, rows: Sequence[int], lengths: Sequence[int], value: Tensor) -> None:
        """Copy one tensor of a forward pass to its place: cast, move and store in one pass, tokens only.

        Args:
            site: Which distinct tensor.
            layer: Its layer.
            rows: Row in the block of each example of the batch.
            lengths: Number of tokens of each.
            value: (batch, n_positions, d_model), or (batch, n_heads, n_positions, d_head or n_positions).
        """
        if self._kept is not None and (site, layer) not in self._kept:
            return
        buffer = self.sites[site]
        target = buffer.data[layer]
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            if buffer.has_positions_first:
                piece, place = value[i, :n], target[row, :n]
            elif site == ATTN:
                piece, place = value[i, :, :n, :n], target[row, :, :n, :n]
            else:
                piece, place = value[i, :, :n], target[row, :, :n]
            place.copy_(piece)
            self._extremes.append((site, layer, *torch.aminmax(piece)))

    def check_finite(self) -> None:
        """Raise if anything written so far is not finite or does not fit the storage type.

        Raises:
            NonFiniteError: Names the tensor, the layer, the largest value and the advice.
        """
        self._note_peaks()
        bad = [
            (site == FINAL, layer, _ORDER.index(site), site)
            for site, buffer in self.sites.items()
            for layer in (~(buffer.peak <= torch.finfo(buffer.data.dtype).max)).nonzero()[:, 0].tolist()
        ]
        if bad:
            _, layer, _, site = min(bad)  # the first in order of computation
            buffer = self.sites[site]
            raise _too_large(site, layer, float(buffer.peak[layer]), buffer.data.dtype)

    def _note_peaks(self) -> None:
        """Fold the extremes gathered since the last time into the peaks, in one step for all pieces."""
        if not self._extremes:
            return
        lows = torch.stack([low for _, _, low, _ in self._extremes]).float().cpu()
        highs = torch.stack([high for _, _, _, high in self._extremes]).float().cpu()
        peaks = {site: buffer.peak.numpy() for site, buffer in self.sites.items()}
        for (site, layer, *_), largest in zip(self._extremes, torch.maximum(highs, -lows).numpy(), strict=True):
            peaks[site][layer] = np.maximum(peaks[site][layer], largest)  # keeps a NaN
        self._extremes.clear()


def _allocate(site: str, dims: Dims, rows: int, dtype: torch.dtype) -> SiteBuffer:
    layers, *example = site_shape(site, dims)
    return SiteBuffer(torch.zeros(layers, rows, *example, dtype=dtype), torch.zeros(layers), site in _ROW_FIRST)


def _too_large(site: str, layer: int, peak: float, dtype: torch.dtype) -> NonFiniteError:
    where = f"{site} of layer {layer}" if site not in {EMBED, FINAL} else site
    if peak != peak or peak == float("inf"):
        return NonFiniteError(
            f"The model computed {'NaN' if peak != peak else 'an infinite value'} in {where}. Its weights may be "
            "damaged, or --model_dtype too narrow for it (try float32). The run was stopped; nothing was committed."
        )
    return NonFiniteError(
        f"{where} reaches {peak:,.0f}, more than {str(dtype).removeprefix('torch.')} holds "
        f"({torch.finfo(dtype).max:,.0f}). Run again with --dtype float32. Nothing was committed."
    )
