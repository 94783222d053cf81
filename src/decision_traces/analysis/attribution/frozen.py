"""A frozen norm: at one residual vector a LayerNorm or RMSNorm is a linear map, so it can be split into parts.

At x such a norm is `s(x) * weight * (v - m * mean(v)) + bias` with v = x, where m is 1 for LayerNorm and 0 for
RMSNorm. With s kept at what x gives, the map is linear in v, and what the norm makes of a sum is the sum of what it
makes of the terms (Elhage et al. 2021). Which kind it is, its weight and its bias are found by trying it out: names
and conventions (Gemma's 1 + weight) play no part, and a module that is no such norm is refused.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from decision_traces.errors import UnsupportedArchitecture

_MOST_MISFIT: Final = 1e-4  # some norms compute in float32 whatever they are given
_PROBES: Final = 8

Matrix = Float64[np.ndarray, "n d_model"]


@dataclass(frozen=True, slots=True)
class FrozenNorm:
    """A norm whose parts are known. Everything is computed in float64, on the CPU.

    Attributes:
        apply: The norm itself.
        weight: (d_model,) up to a factor, which is part of the scale.
        bias: (d_model,)
        centred: Whether the mean is taken off.
        name: What it is, for messages.
    """

    apply: Callable[[Matrix], Matrix]
    weight: Float64[np.ndarray, " d_model"]
    bias: Float64[np.ndarray, " d_model"]
    centred: bool
    name: str

    def scale_at(self, x: Matrix) -> Float64[np.ndarray, " n"]:
        """Return s(x) of every row, having checked that the frozen map gives there what the norm gives.

        Raises:
            UnsupportedArchitecture: It does not.
        """
        scale, misfit = self._fit(x)
        if not misfit < _MOST_MISFIT:
            raise UnsupportedArchitecture(
                f"{self.name} is no LayerNorm or RMSNorm: held fixed, it misses its own output by {misfit:.2g}, "
                "and contributions to the logits would not add up."
            )
        return scale

    def pull(self, direction: Matrix, scale: Float64[np.ndarray, " n"]) -> Matrix:
        """Return the direction before the norm: for all v, (frozen(v) - bias) · direction = v · pulled."""
        pulled: np.ndarray = scale[:, None] * self.weight * direction
        return pulled - pulled.mean(1, keepdims=True) if self.centred else pulled

    def _fit(self, x: Matrix) -> tuple[Float64[np.ndarray, " n"], float]:
        output = self.apply(x)
        shape = self.weight * (x - x.mean(1, keepdims=True) if self.centred else x)
        size = np.square(shape).sum(1)
        scale = np.divide(((output - self.bias) * shape).sum(1), size, out=np.zeros(len(x)), where=size > 0)
        missed = np.abs(output - (scale[:, None] * shape + self.bias))
        magnitude = np.abs(output) + np.median(np.abs(output), axis=1, keepdims=True)
        return scale, float((missed / np.maximum(magnitude, 1e-300)).max(initial=0.0))


def freeze(norm: nn.Module | None, d_model: int, name: str | None = None) -> FrozenNorm:
    """Find the parts of a norm by trying it out.

    Args:
        norm: The norm; None for no norm at all.
        d_model: Width of what it works on.
        name: For messages; the class's name by default.

    Raises:
        UnsupportedArchitecture: It is no LayerNorm or RMSNorm.
    """
    apply = _in_float64(norm)
    if norm is None:
        return FrozenNorm(apply, np.ones(d_model), np.zeros(d_model), centred=False, name="no norm")
    # Never small, with and without its mean: signs alternate.
    probe = (np.where(np.arange(d_model) % 2 == 0, 1.0, -1.0) * (1 + np.arange(d_model) / d_model))[None]
    up, down = apply(probe), apply(-probe)
    bias = (up + down)[0] / 2
    others = np.random.default_rng(0).normal(0.5, 1.0, (_PROBES, d_model))
    fits = []
    for centred in (False, True):
        weight = (up - bias)[0] / (probe - probe.mean() if centred else probe)[0]
        candidate = FrozenNorm(apply, weight, bias, centred, name or type(norm).__name__)
        fits.append((candidate._fit(others)[1], centred, candidate))
    best = min(fits)[2]
    best.scale_at(others)
    return best


def _in_float64(norm: nn.Module | None) -> Callable[[Matrix], Matrix]:
    if norm is None:
        return lambda x: x
    exact = copy.deepcopy(norm).to("cpu", torch.float64)

    def apply(x: Matrix) -> Matrix:
        with torch.inference_mode():
            output: np.ndarray = exact(torch.from_numpy(x)).double().numpy()
        return output

    return apply
