"""What a model makes of its unembedding before it calls it logits: a factor, a cap, a shift. Found by trying it out.

Names and configs play no part: the output embedding is made to return numbers of ours, and the model's own forward
says what becomes of each. So Gemma 2's cap, Cohere's and Granite's factor and BART's bias are one case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SMALL, _LARGE = -6, 12  # powers of two that are tried: where a cap does not bend yet, and where nothing but it is left
_MISFIT: Final = 1e-4
_STRAIGHT: Final = 1e-3


@dataclass(frozen=True, slots=True)
class LogitMap:
    """From u, the output embedding of the last hidden state, to the logits.

    They are `factor * u + shift`, or where there is a cap `cap * tanh(factor * u / cap)`.

    Attributes:
        factor: Of all tokens, what stands in front of the output embedding (T5 scales there) included.
        cap: Largest size of a logit; None where nothing limits it.
        shift: (vocab,) float32 by token; -inf, or the smallest number, rules one out. None where nothing is added.
    """

    factor: float = 1.0
    cap: float | None = None
    shift: Float[Tensor, " vocab"] | None = field(default=None, compare=False)

    @property
    def changes_nothing(self) -> bool:
        """Whether the output embedding gives the logits as they are."""
        return self.factor == 1.0 and self.cap is None and self.shift is None

    def uncapped(self, unembedded: Float[Tensor, "*n token"], ids: Tensor | None = None) -> Float[Tensor, "*n token"]:
        """Return the logits as they would be without a cap.

        Args:
            unembedded: What the output embedding gives.
            ids: The tokens, where these are not all; of the same shape.
        """
        scaled = unembedded if self.factor == 1.0 else unembedded * self.factor
        if self.shift is None:
            return scaled
        shift = self.shift.to(scaled.device)
        return scaled + (shift if ids is None else shift[ids])

    def capped(self, uncapped: Float[Tensor, "*n token"]) -> Float[Tensor, "*n token"]:
        """Return the logits of a model that caps them; without a cap, what is given."""
        return uncapped if self.cap is None else torch.tanh(uncapped / self.cap) * self.cap


def find_logit_map(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Any], shape: torch.Size, before: float
) -> LogitMap | None:
    """Return what a model makes of its unembedding, None where it is not one such map for all positions.

    Args:
        model: The model, in eval mode.
        head: Its output embedding.
        inputs: Arguments of its forward.
        shape: Of what the output embedding gives for them.
        before: What the last hidden state is multiplied by before it gets there.
    """
    if before != 1.0 and getattr(head, "bias", None) is not None:
        return None  # the bias would have another factor than the rest
    tried = _ladder(shape)
    handle = head.register_forward_hook(lambda _module, _args, out: tried.to(out.device))
    try:
        with torch.no_grad():
            given = getattr(model(**inputs), "logits", None)
    finally:
        handle.remove()
    if given is None or given.shape != shape:
        return None
    found = _fit(tried.flatten(0, -2), given.float().cpu().flatten(0, -2))
    return None if found is None else LogitMap(found.factor * before, found.cap, found.shift)


def _ladder(shape: torch.Size) -> Float[Tensor, "..."]:
    """Return zeros at the first position, at the others powers of two of both signs."""
    steps = 2.0 ** torch.arange(_SMALL, _LARGE + 1)
    values = torch.cat([steps, -steps])
    tried = values[torch.arange(shape.numel()) % len(values)].view(-1, shape[-1])
    tried[0] = 0.0
    return tried.view(shape)


def _fit(tried: Float[Tensor, "n vocab"], given: Float[Tensor, "n vocab"]) -> LogitMap | None:
    shift = given[0]
    used = shift > torch.finfo(torch.float16).min / 2  # the others are ruled out, whatever stands there
    if not bool(used.any()):
        return None
    x, y = tried[1:, used].double(), (given[1:, used] - shift[used]).double()
    slope = [float((y / x)[x.abs() == 2.0**power].median()) for power in (_SMALL, _LARGE)]
    shifted = bool(shift.any())
    straight = abs(slope[1] - slope[0]) <= _STRAIGHT * abs(slope[1])
    if not straight and shifted:
        return None
    found = LogitMap(slope[1])
    if not straight:
        cap = float(y.abs().max())
        small = x.abs() == 2.0**_SMALL
        found = LogitMap(float((cap * torch.atanh(y[small] / cap) / x[small]).median()), cap)
    expected = found.capped(found.uncapped(x))
    allowed = _MISFIT * (expected.abs() + shift[used].abs())
    if not bool(((y - expected).abs() <= allowed).all()):
        return None
    return LogitMap(found.factor, found.cap, shift if shifted else None)
