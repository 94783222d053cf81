"""Which of torch's kernels for attention a run's passes go through."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def any_shape_of_batch() -> Iterator[None]:
    """Leave out cuDNN's attention on CUDA devices: it plans anew for every shape, and each batch has another.

    On an H200 a 16-layer Llama in bfloat16 took 80 to 90 ms for the first batch of a shape and 42 for the next; without
    cuDNN it took 42 to 46 ms for both (torch 2.11).
    """
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
