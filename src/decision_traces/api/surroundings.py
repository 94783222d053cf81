"""What a notebook has set around a call must not decide what is computed, and is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Compute as a command of its own process would: without autocast, and with torch's own defaults.

    Default device and type, and the state of the random numbers, are the caller's again afterwards.
    """
    dtype, kinds = torch.get_default_dtype(), {"cpu", *(("cuda",) if torch.cuda.is_available() else ())}
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        try:
            for kind in kinds:
                torch.set_autocast_enabled(kind, False)
            yield
        finally:
            torch.set_default_dtype(dtype)
            for kind, enabled in autocast.items():
                torch.set_autocast_enabled(kind, enabled)
