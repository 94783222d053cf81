"""Whether a tokenizer reads the texts, and reads them for this model."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from decision_traces.data.example import Example
from decision_traces.errors import UsageError
from decision_traces.model.load import LoadedModel
from decision_traces.tokens import Encoding

_MOST_LOST = 0.5
"""Share of texts without a token, or of unknown tokens, from which on a tokenizer is not the texts'."""


def token_limit(asked: int | Literal["auto"], loaded: LoadedModel) -> int | None:
    """Return the most tokens of a text: as asked, or those that the model was built for; None for any number.

    Raises:
        UsageError: The model was not built for so many.
    """
    context = loaded.context
    if asked == "auto":
        return context
    if context is not None and asked > context:
        raise UsageError(
            f"--max_seq_len {asked}: {type(loaded.model).__name__} was built for {context} tokens; "
            f"give {context} or less, or auto."
        )
    return asked


def refuse_unread(examples: Sequence[Example], encodings: Sequence[Encoding], loaded: LoadedModel) -> None:
    """Refuse a tokenizer that does not read the texts, or not for this model.

    Args:
        examples: The texts.
        encodings: They, tokenised; with choices, several for each.
        loaded: The model with its tokenizer.

    Raises:
        UsageError: Most texts have no token, most tokens are unknown, or an id is not in the model's vocabulary.
    """
    n_each = len(encodings) // max(1, len(examples))
    own = [_own(e) for i, e in enumerate(encodings) if examples[i // n_each].text.strip() and not e.truncated]
    empty = sum(len(ids) == 0 for ids in own)
    advice = "Give a model whose tokenizer knows this writing, or put its own tokenizer files beside its weights."
    if empty > _MOST_LOST * len(own):
        raise UsageError(f"The tokenizer makes no token of {empty} of {len(own)} texts. {advice}")
    ids = np.concatenate([_own(e.main) for e in encodings]) if encodings else np.array([])
    unknown = int((ids == loaded.tokenizer.unk_token_id).sum()) if loaded.tokenizer.unk_token_id is not None else 0
    if unknown > _MOST_LOST * len(ids):
        raise UsageError(
            f"{unknown} of {len(ids)} tokens ({unknown / len(ids):.0%}) are {loaded.tokenizer.unk_token}, which the "
            f"tokenizer gives for what it does not know. {advice}"
        )
    _refuse_strange_ids(encodings, loaded)


def _own(encoding: Encoding) -> np.ndarray:
    """Return the ids of a text itself, without the tokens that stand for none of it."""
    return encoding.ids[encoding.offsets[:, 1] > encoding.offsets[:, 0]]


def _refuse_strange_ids(encodings: Sequence[Encoding], loaded: LoadedModel) -> None:
    texts = [e for encoding in encodings for e in (encoding, encoding.target) if e is not None and e.n_tokens]
    largest = max((int(e.ids.max()) for e in texts), default=0)
    rows = loaded.embedded
    if largest >= rows:
        raise UsageError(
            f"The tokenizer gives the id {largest}, but the model's vocabulary has {rows} entries: "
            "they do not belong together."
        )


def refuse_cut(asked: int | Literal["auto"], encodings: Sequence[Encoding], limit: int | None) -> None:
    """Refuse prompts that are longer than the limit.

    Raises:
        UsageError: Says how many.
    """
    cut = sum(e.truncated for e in encodings)
    if cut:
        raise UsageError(
            f"--max_seq_len {asked}: {cut} of {len(encodings)} prompts have more than {limit} "
            "tokens. A cut prompt loses its end, where the answer is read. Give more, or auto, which goes up to the "
            "model's context."
        )
