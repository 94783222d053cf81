"""How many tokens a batch has, for the device that computes it."""

from typing import Final

import torch

_TOKENS: Final = {"cpu": 1024}
_MOST_TOKENS: Final = 8192
_BATCH_COST: Final = {"cpu": 32}
_LAUNCHES: Final = 1024


def token_budget(device: torch.device) -> int:
    """Return the most slots of a batch: enough for full speed (measured on a CPU), little enough for the memory."""
    return _TOKENS.get(device.type, _MOST_TOKENS)


def batch_cost(device: torch.device) -> int:
    """Return what a batch costs by itself, in slots.

    On a CPU the weights are read once a batch (measured with 135 M parameters); an accelerator waits for Python to
    start some hundred kernels (16 ms for 16 layers on an H200, where as much time is worth 2,000 slots).
    """
    return _BATCH_COST.get(device.type, _LAUNCHES)
