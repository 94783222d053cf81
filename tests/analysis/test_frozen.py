"""Norms taken apart: their own formulas, written out with NumPy, and modules that are no such norm."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from decision_traces.analysis.attribution.frozen import freeze
from decision_traces.errors import UnsupportedArchitecture


def _layer_norm(width: int, **options) -> nn.Module:
    return nn.LayerNorm(width, **options)


NORMS = {
    "layer": (_layer_norm, True),
    "layer without bias": (lambda d: _layer_norm(d, bias=False), True),
    "layer without weights": (lambda d: _layer_norm(d, elementwise_affine=False), True),
    "rms": (nn.RMSNorm, False),
    "llama": (LlamaRMSNorm, False),
    "gemma": (GemmaRMSNorm, False),
}


@pytest.mark.parametrize("width", [8, 7, 64])
@pytest.mark.parametrize("name", NORMS)
def test_the_frozen_map_is_linear_and_gives_what_the_norm_gives(name: str, width: int) -> None:
    torch.manual_seed(width)
    make, centred = NORMS[name]
    norm = make(width)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_(1.0, 0.5)
    rng = np.random.default_rng(width)
    x = rng.normal(0.3, 2.0, (5, width))
    x[:, 0] = 5000.0  # a massive activation
    frozen = freeze(norm, width)
    assert frozen.centred == centred
    scale, direction = frozen.scale_at(x), rng.normal(size=(5, width))
    with torch.no_grad():
        output = norm(torch.from_numpy(x).float()).double().numpy()
    pulled = frozen.pull(direction, scale)
    np.testing.assert_allclose(
        (x * pulled).sum(1) + direction @ frozen.bias, (output * direction).sum(1), rtol=1e-4, atol=1e-3
    )
    # Part by part, by the formula with the statistics of x.
    middle = x.mean(1, keepdims=True) if centred else 0.0
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0.0) or float(np.finfo(np.float64).eps)
    root = np.sqrt(((x - middle) ** 2).mean(1, keepdims=True) + eps)
    weight = getattr(norm, "weight", None)
    weight = np.ones(width) if weight is None else weight.detach().double().numpy() + (name == "gemma")
    part = rng.normal(size=(5, width))
    linear = (part - (part.mean(1, keepdims=True) if centred else 0.0)) / root * weight
    np.testing.assert_allclose((part * pulled).sum(1), (linear * direction).sum(1), rtol=1e-4, atol=1e-6)


def test_no_norm_is_the_identity() -> None:
    x, direction = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    frozen = freeze(None, 3)
    np.testing.assert_array_equal(frozen.pull(direction, frozen.scale_at(x)), direction)


class _Halves(nn.Module):
    """Norms each half by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([half / half.pow(2).mean(-1, keepdim=True).sqrt() for half in x.chunk(2, -1)], -1)


class _Clamped(nn.Module):
    """An RMSNorm until something is larger than any probe."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x / x.pow(2).mean(-1, keepdim=True).sqrt()).clamp(-6.0, 6.0)


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Softmax(-1), _Halves()])
def test_what_is_no_norm_is_refused(module: nn.Module) -> None:
    with pytest.raises(UnsupportedArchitecture, match="is no LayerNorm or RMSNorm"):
        freeze(module, 16)


def test_a_norm_that_fails_on_a_real_vector_is_refused_there() -> None:
    frozen, x = freeze(_Clamped(), 64), np.ones((1, 64))
    np.testing.assert_allclose(frozen.scale_at(x) * frozen.weight, 1.0)
    x[0, 5] = 1000.0  # comes out as 8 without the clamp
    with pytest.raises(UnsupportedArchitecture, match="held fixed, it misses its own output"):
        frozen.scale_at(x)
