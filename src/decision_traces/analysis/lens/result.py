"""What the lens gives of a run. Needs no torch."""

from dataclasses import dataclass

from decision_traces.analysis.results import DecisionDepth, LensByChoice, LensTrajectories


@dataclass(frozen=True, slots=True)
class LensResult:
    """What a model would say after each layer, and when its decisions stand.

    Attributes:
        lenses: The decisions over the vocabulary, stage by stage: "hidden", and "post_attn" where the run holds it.
            None of an encoder that reads choices.
        choices: The decisions between the choices of questions, where there are any.
        depth: When each decision stood: between the choices, or over the vocabulary.
        several: Whether an example may have several decisions, as a text with several masks has.
        notes: What is left out, a sentence each.
    """

    lenses: tuple[LensTrajectories, ...]
    choices: LensByChoice | None
    depth: DecisionDepth
    several: bool = False
    notes: tuple[str, ...] = ()
