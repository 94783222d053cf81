"""How far a model is from itself when its sums are added in another order, and what of a run is further off.

A distance is the largest difference in a layer, each relative to the largest value of the vector it is in (the last
axis: a token's state, a head's query, a row of attention). Sums are rounded as coarsely as the largest of their terms,
so what rounding changes is of one size there, however different tokens are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MARGIN: Final = 8
"""How many times its own noise a model may be off. Traced with the kernels for a processor without AVX and checked with
those for AVX-512, or the other way round, SmolLM2, MiniLM and two smaller models were off five times it at most."""
ULPS: Final = 16
"""Steps of the model's type that are allowed without any noise: another machine may add where this one need not."""
_PARTS: Final = 8


@contextmanager
def other_threads() -> Iterator[None]:
    """Compute with another number of threads inside the block: with one, or with two where it is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SumsInParts(TorchFunctionMode):
    """Inside the block, every product with a matrix of weights is the sum of eight products with parts of it.

    Where a kernel adds in the same order for any number of threads and rows, only this shows what another would change.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Stand in for a function of torch."""
        if func is functional.linear and len(args) > 1 and type(args[1]) is nn.Parameter:
            return _in_parts(*args, **(kwargs or {}))
        if func is torch.addmm and not kwargs and type(args[2]) is nn.Parameter:  # GPT-2's matrices
            return _in_parts(args[1], args[2].T, args[0])
        return func(*args, **(kwargs or {}))


def _in_parts(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` returns; the parts are added in float32 at least, as kernels add."""
    wide = torch.promote_types(x.dtype, torch.float32)
    pairs = zip(x.tensor_split(_PARTS, dim=-1), weight.tensor_split(_PARTS, dim=1), strict=True)
    out = torch.stack([functional.linear(part.to(wide), of_it.to(wide)) for part, of_it in pairs]).sum(0)
    return (out if bias is None else out + bias).to(x.dtype)


def apart(
    left: Shaped[np.ndarray, "..."], right: Shaped[np.ndarray, "..."], *, layered: bool
) -> Float64[np.ndarray, " layers"]:
    """Return how far two arrays are apart in each layer, beyond the rounding of the type of the first.

    Args:
        left: (layer, ..., n), or (..., n) of a single layer; half its spacing is taken off at every value.
        right: The same in float32.
        layered: Whether the first axis is layers.
    """
    pairs = zip(left, right, strict=True) if layered else [(left, right)]
    return np.array([_worst(a, b) for a, b in pairs])


def _worst(left: Shaped[np.ndarray, "..."], right: Shaped[np.ndarray, "..."]) -> float:
    """Return the largest difference relative to its vector; a vector smaller than most counts as one of their size."""
    if not right.size:
        return 0.0
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return float("inf")
    difference = np.abs(left.astype(np.float64) - right)
    if left.dtype == np.float16:
        difference = np.maximum(difference - np.spacing(np.abs(left)).astype(np.float64) / 2, 0.0)
    largest = np.abs(right).max(axis=-1, keepdims=True)
    some = largest[largest > 0]
    return float((difference / np.maximum(largest, np.median(some) if some.size else 1e-30)).max())


@dataclass(slots=True)
class Distances:
    """What was found of one array.

    Attributes:
        where: The examples.
        off: Of each, how far what is stored is from the model, by layer.
        noise: Of each, how far the model is from itself, by layer.
    """

    where: list[str] = field(default_factory=list)
    off: list[Float64[np.ndarray, " layers"]] = field(default_factory=list)
    noise: list[Float64[np.ndarray, " layers"]] = field(default_factory=list)

    def add(self, where: str, off: Float64[np.ndarray, " layers"], noise: Float64[np.ndarray, " layers"]) -> None:
        """Take in one example."""
        self.where.append(where)
        self.off.append(off)
        self.noise.append(noise)

    def verdict(self, epsilon: float) -> tuple[float, float, str, float]:
        """Return what is nearest to (or furthest over) what is allowed in its layer.

        Args:
            epsilon: The relative step between numbers of the type that the model computes in.

        Returns:
            Its distance, what is allowed, its example, and the model's own noise there.
        """
        if not self.where:
            return 0.0, 0.0, "", 0.0
        noise, off = np.max(self.noise, axis=0), np.array(self.off)
        allowed = np.maximum(MARGIN * noise, ULPS * epsilon)
        over = np.where(np.isfinite(off), off / allowed, np.inf)  # where nothing is a number, noise is none either
        row, layer = np.unravel_index(over.argmax(), off.shape)
        return float(off[row, layer]), float(allowed[layer]), self.where[row], float(noise[layer])
