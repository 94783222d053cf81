"""What helps the engine to keep up with an accelerator: page-locked shared memory, and processes that write from it."""

from dataclasses import dataclass
from typing import Any, Final

import torch

from decision_traces.store import WriterProcesses
from decision_traces.tracing.buffers import Memory

_SUCCESS: Final = 0


@dataclass(frozen=True, slots=True)
class Helpers:
    """Nothing beside a processor that computes, which needs its cores itself.

    Attributes:
        processes: Write shard files, from memory that they share; None where this process does.
        pinned: Whether copies come from a CUDA device.
    """

    processes: WriterProcesses | None = None
    pinned: bool = False

    @classmethod
    def of(cls, device: torch.device) -> "Helpers":
        """Return what helps with a model on this device."""
        if device.type != "cuda":
            return cls()
        processes = WriterProcesses(pin=_pin, unpin=_unpin) if WriterProcesses.available() else None
        return cls(processes, pinned=True)

    @property
    def memory(self) -> Memory | None:
        """What gives room for captures; None for torch itself."""
        return None if self.processes is None else self.processes.memory.room

    def close(self) -> None:
        """Let the processes end, and give the memory back."""
        if self.processes is None:
            return
        self.processes.close()
        if self.pinned:
            torch.cuda.synchronize()  # nothing may still be copied to it
        self.processes.memory.close()


def _pin(address: int, size: int) -> None:
    """Lock memory, so that a device copies to it by itself.

    Raises:
        MemoryError: The system does not let so much be locked.
    """
    code = int(_runtime().cudaHostRegister(address, size, 0))
    if code != _SUCCESS:
        raise MemoryError(f"not enough memory: {size / 1e6:,.0f} MB could not be page-locked (CUDA error {code})")


def _unpin(address: int, _size: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
