"""How many tokens a model was built for, and at what length it changes its ways."""

import inspect
from typing import Any, Final

from torch import nn

_LIMITS: Final = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "model_max_length",
)
"""How configs call the longest text; the first that a config's own class takes is its own."""


def context_of(model: nn.Module, config: Any) -> int | None:
    """Return the longest text in tokens that a model was built for; None where it states no limit."""
    limit = stated_limit(config.get_text_config(), _LIMITS)
    if limit is None:
        return None
    # RoBERTa's kind counts positions from behind the padding index of a table that holds it.
    words = model.get_input_embeddings()  # type: ignore[operator]
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    padding = [t.padding_idx for t in tables if t.num_embeddings == limit and t.padding_idx is not None]
    return limit - max((p + 1 for p in padding if p + 1 < limit), default=0)  # an index of -1 is the last row


def stated_limit(config: Any, names: tuple[str, ...]) -> int | None:
    """Return a limit that a config states under one of some names; what is not above zero (XLNet: -1) is none.

    A name that the config's class does not take stands for nothing (T5's old configs have an `n_positions`).
    """
    taken = inspect.signature(type(config)).parameters
    known = (name for name in names if name in taken or name in type(config).attribute_map)
    values = (getattr(config, name, None) for name in known)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def switch_of(config: Any) -> int | None:
    """Return the longest text that a model reads with the first of its two sets of frequencies; None with one set.

    LongRoPE reads a batch whose longest row is longer with the second set, so that rows on both sides of it must not
    share a batch.
    """
    told = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [told, *(kind for kind in told.values() if isinstance(kind, dict))]  # one for all, or one a kind of layer
    ends = [k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"]
    return min(ends, default=None)
