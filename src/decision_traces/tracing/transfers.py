"""Getting tensors off a CUDA device without holding up what it computes."""

import torch
from torch import Tensor

from decision_traces.format.arrays import Site


class Transfers:
    """Copies from a CUDA device beside its computing: on a stream of their own, to page-locked memory.

    The largest values are found on the device too, where looking at all of them costs nothing.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._found: dict[Site, Tensor] = {}
        self._told = torch.empty(0)
        self.peaks: dict[Site, float] = {}
        """The largest absolute value of every tensor over its tokens, once `wait` has waited."""

    def start(self) -> None:
        """Begin a pass."""
        self._found.clear()

    def copy(self, place: Site, target: Tensor, value: Tensor, padding: Tensor | None) -> None:
        """Cast now, in the order of the pass, which may overwrite the tensor later; move when there is time.

        Args:
            place: Which tensor.
            target: Page-locked memory.
            value: (rows, [heads,] positions, width), on the device.
            padding: (rows, positions), where no token stands; None where one stands everywhere.
        """
        cast = value.to(target.dtype, copy=True, memory_format=torch.contiguous_format)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(cast, non_blocking=True)
            at = torch.linalg.vector_norm(cast, float("inf"), dim=-1)
            if padding is not None:
                at = at.masked_fill(padding.view(len(padding), *(1,) * (at.dim() - 2), -1), 0)
            self._found[place] = at.amax()
        cast.record_stream(self._stream)  # its room must not be given away before it has been read

    def end(self) -> None:
        """Note what `wait` waits for."""
        with torch.cuda.stream(self._stream):
            told = torch.stack(list(self._found.values())).float()
            self._told = torch.empty(told.shape, pin_memory=True).copy_(told, non_blocking=True)
        self._done.record(self._stream)

    def wait(self) -> None:
        """Wait until everything is in memory."""
        self._done.synchronize()
        self.peaks = dict(zip(self._found, self._told.tolist(), strict=True))
