"""Texts to token ids, and token ids to right-padded batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

_TOKENISE_AT_ONCE = 1000
# A batch is closed early where padding would take more than this share of it, once it has tokens enough to keep
# the matrix products busy.
_MOST_PADDING = 0.1
_ENOUGH_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Encoding:
    """One tokenised text.

    Attributes:
        ids: (n_tokens,) token ids, special tokens as the tokenizer adds them by default.
        offsets: (n_tokens, 2) character span of each token; (0, 0) for special tokens.
        truncated: Whether the text was longer than the limit.
    """

    ids: Int32[np.ndarray, " n_tokens"]
    offsets: Int32[np.ndarray, "n_tokens 2"]
    truncated: bool

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Examples of similar length, padded on the right.

    Attributes:
        rows: The examples' numbers in the block (or whatever the caller counts in).
        lengths: Number of tokens of each.
        input_ids: (batch, n_positions) token ids.
        attention_mask: (batch, n_positions), 1 for tokens.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    input_ids: Int[Tensor, "batch n_positions"]
    attention_mask: Int[Tensor, "batch n_positions"]


def encode(tokenizer: Any, texts: Sequence[str], limit: int | None) -> list[Encoding]:
    """Tokenise texts with the tokenizer's own defaults, cutting each after `limit` tokens."""
    encodings: list[Encoding] = []
    for start in range(0, len(texts), _TOKENISE_AT_ONCE):
        part = list(texts[start : start + _TOKENISE_AT_ONCE])
        out = tokenizer(part, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
        for ids, offsets in zip(out["input_ids"], out["offset_mapping"], strict=True):
            encodings.append(_encoding(ids, offsets, limit))
    return encodings


def _encoding(ids: list[int], offsets: list[tuple[int, int]], limit: int | None) -> Encoding:
    return Encoding(
        ids=np.asarray(ids[:limit], dtype=np.int32),
        offsets=np.asarray(offsets[:limit], dtype=np.int32).reshape(-1, 2),
        truncated=limit is not None and len(ids) > limit,
    )


def pad_id(tokenizer: Any, vocab_size: int) -> int:
    """Return the id that fills padding: the pad token, else the end-of-text token, else 0.

    A pad token that was added without growing the model's embedding (id >= vocab_size) cannot be used.
    """
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None and value < vocab_size:  # 0 is an id like any other
            return int(value)
    return 0


def make_batch(rows: Sequence[int], encodings: Sequence[Encoding], pad: int) -> TokenBatch:
    """Pad encodings on the right to the longest of them."""
    lengths = tuple(e.n_tokens for e in encodings)
    ids = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, encoding in enumerate(encodings):
        ids[i, : lengths[i]] = torch.from_numpy(encoding.ids.astype(np.int64))
        mask[i, : lengths[i]] = 1
    return TokenBatch(tuple(rows), lengths, ids, mask)


def batches(encodings: Sequence[Encoding], batch_size: int, token_budget: int, pad: int) -> Iterator[TokenBatch]:
    """Sort by length and pack, so that hardly any computation goes to padding. Texts of no tokens are left out.

    Args:
        encodings: The examples of one block, in order.
        batch_size: Most rows of a batch.
        token_budget: Most slots (rows times longest) of a batch; a single longer text still makes a batch.
        pad: Id that fills padding.
    """
    order = sorted((i for i, e in enumerate(encodings) if e.n_tokens), key=lambda i: encodings[i].n_tokens)
    group: list[int] = []
    tokens = 0
    for i in order:
        n = encodings[i].n_tokens
        slots = (len(group) + 1) * n
        full = len(group) == batch_size or slots > token_budget
        wasteful = tokens >= _ENOUGH_TOKENS and slots - tokens - n > _MOST_PADDING * slots
        if group and (full or wasteful):
            yield make_batch(group, [encodings[g] for g in group], pad)
            group, tokens = [], 0
        group.append(i)
        tokens += n
    if group:
        yield make_batch(group, [encodings[g] for g in group], pad)
