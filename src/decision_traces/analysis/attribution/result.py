"""What attribution gives of a run. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

from decision_traces.analysis.results import Attribution


@dataclass(frozen=True, slots=True)
class AttributionResult:
    """Which parts of a model decide between the target and its competitor.

    Attributes:
        leads: What each part adds to the lead.
        of: What leads over what: tokens, or the choices that an encoder read.
        notes: What is left out, a sentence each.
    """

    leads: Attribution
    of: Literal["token", "choice"] = "token"
    notes: tuple[str, ...] = ()
