"""What a model's head may have to do, and what follows from it: one row a `Task` of a model.

Kinds of decision (`decision_traces.tasks`) name the head that they need. A new head is a row here, its class of
transformers in `model.checkpoint`, and how it is called in `model.task`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from decision_traces.format.arrays import ModelTask


@dataclass(frozen=True, slots=True)
class Head:
    """What a head does.

    Attributes:
        logits: Whether it gives any.
        words: Whether these are over the vocabulary; then the head must be the checkpoint's own.
        encoder: Whether the model is only an encoder, whose tokens see one another in both directions.
        target: Whether a decoder reads a target of its own beside the text.
        choices: Whether it scores choices, each by itself; such a head may be new, and then decides nothing.
    """

    logits: bool = True
    words: bool = False
    encoder: bool = False
    target: bool = False
    choices: bool = False

    @property
    def decoder(self) -> bool:
        """Whether the model is only a decoder."""
        return not self.encoder and not self.target


HEADS: Final[Mapping[ModelTask, Head]] = {
    "causal": Head(words=True),
    "masked": Head(words=True, encoder=True),
    "seq2seq": Head(words=True, target=True),
    "multiple_choice": Head(encoder=True, choices=True),
    "encode": Head(logits=False, encoder=True),
}
