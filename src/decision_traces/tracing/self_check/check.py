"""What a proof looks at and what it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from decision_traces.format.arrays import Side, stage_of
from decision_traces.format.stages import STREAM
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.tracing.self_check.evidence import Pass

TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest difference allowed, relative per element (see `relative_difference`); a few hundred roundings."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure of the certificate.

    Attributes:
        name: What was compared.
        worst: The largest difference found.
        allowed: The largest allowed.
        passed: The verdict.
        condemns: Sites that are wrong if it does not hold, where that can be told.
        padding: Whether it compares padded rows with rows alone.
    """

    name: str
    worst: float
    allowed: float
    passed: bool
    condemns: tuple[str, ...] = ()
    padding: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What all proofs look at.

    Attributes:
        loaded, structure: The model and what is claimed of it.
        together: All rows in one padded batch.
        notes: Where a proof says what it could not check.
    """

    loaded: LoadedModel
    structure: ModuleStructure
    together: Pass
    notes: list[str]

    @property
    def dtype(self) -> torch.dtype:
        """The model's type."""
        return next(self.loaded.model.parameters()).dtype

    @property
    def tolerance(self) -> float:
        """The largest relative difference allowed."""
        return TOLERANCE[self.dtype]


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest |a - b| relative to the element itself plus the median magnitude.

    Against the array's maximum a few massive activations would hide any error; against the element alone a
    value near zero would make one of nothing. The median is over what is not zero.
    """
    if a.numel() == 0:
        return 0.0
    a, b = a.float(), b.float()
    size = b.abs()
    worst = float(((a - b).abs() / (size + _median(size) + 1e-30)).max())
    return worst if worst == worst else float("inf")


def _median(size: Tensor) -> Tensor:
    """Return the median magnitude of what is not zero: rectified neurons and unused room do not count."""
    some = size[size > 0]
    return some.median() if some.numel() else torch.zeros(())


def exact(name: str, a: Tensor | None, b: Tensor | None) -> Check:
    """Return whether two tensors are equal bit for bit."""
    if a is None or b is None:
        return Check(name, 0.0, 0.0, a is b)
    if a.shape != b.shape:
        return Check(f"{name} (shapes {tuple(a.shape)} and {tuple(b.shape)})", float("inf"), 0.0, False)
    equal = torch.equal(a, b)
    return Check(name, 0.0 if equal else float((a.float() - b.float()).abs().max()), 0.0, equal)


def within(name: str, worst: float, allowed: float, condemns: Sequence[str] = ()) -> Check:
    """Return the check of a figure against what is allowed."""
    # Without the stream there is no trace: a check that fails on it condemns the whole model.
    return Check(name, worst, allowed, worst <= allowed, tuple(c for c in condemns if stage_of(c) not in STREAM))


def side_words(side: Side, checked: Checked) -> str:
    """Return which side's a check is, in words, where a model has two."""
    return "" if len(checked.structure.stacks) == 1 else {"enc": "encoder: ", "dec": "decoder: "}[side]
