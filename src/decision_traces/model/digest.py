"""Telling whether weights are those of a run: a digest of all of them."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over all of a model's weights; see `tensors_digest`."""
    return tensors_digest(model.state_dict())


def tensors_digest(weights: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, types, shapes and the SHA-256 of each of the weights, read by several threads."""
    named = sorted(weights.items())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, (tensor for _, tensor in named)))
    lines = (f"{n} {t.dtype} {tuple(t.shape)} {digest}\n" for (n, t), digest in zip(named, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
