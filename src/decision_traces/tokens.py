"""Texts, and pairs of texts, to token ids; token ids to right-padded batches of similar length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from jaxtyping import Int, Int8, Int32
from torch import Tensor

from decision_traces.data.example import Example
from decision_traces.errors import UsageError
from decision_traces.format.arrays import ModelTask, Side
from decision_traces.format.heads import HEADS

_TOKENISE_AT_ONCE = 1000
SpecialTokens = Literal["auto", "yes", "no"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One tokenised text.

    Attributes:
        ids: (n_tokens,) token ids, special tokens as the tokenizer adds them by default.
        offsets: (n_tokens, 2) character span of each token; (0, 0) for special tokens.
        truncated: Whether the text was longer than the limit.
        type_ids: (n_tokens,) which segment a token is of, as the model takes it; None where its tokenizer does
            not say, or its forward pass does not ask.
        sequence_ids: (n_tokens,) 0 for tokens of the first text of a pair, 1 of the second, -1 of neither; None for
            a single text.
        target: What the decoder of an encoder-decoder reads; None for any other model.
        truth: (n_tokens,) the ids before some were replaced by the mask token, -1 for a mask of the text's own; None
            where there is no mask.
        own_start: Whether the text itself begins with the start token, and the tokenizer's was left out.
    """

    ids: Int32[np.ndarray, " n_tokens"]
    offsets: Int32[np.ndarray, "n_tokens 2"]
    truncated: bool
    type_ids: Int32[np.ndarray, " n_tokens"] | None = None
    sequence_ids: Int8[np.ndarray, " n_tokens"] | None = None
    target: "Encoding | None" = None
    truth: Int32[np.ndarray, " n_tokens"] | None = None
    own_start: bool = False

    @property
    def main(self) -> "Encoding":
        """What the outcome is read from: the target where there is one."""
        return self.target or self

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
        token_type_ids: (batch, n_positions), or None where the model takes none.
        target: What the decoder of an encoder-decoder reads, row by row; None for any other model.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    input_ids: Int[Tensor, "batch n_positions"]
    attention_mask: Int[Tensor, "batch n_positions"]
    token_type_ids: Int[Tensor, "batch n_positions"] | None = None
    target: "TokenBatch | None" = None

    @property
    def main(self) -> "TokenBatch":
        """What the outcome is read from: the target where there is one."""
        return self.target or self

    def lengths_by_side(self, sides: Iterable[Side]) -> dict[Side, tuple[int, ...]]:
        """Return the number of tokens of each row, by side of the model."""
        if self.target is None:
            return dict.fromkeys(sides, self.lengths)
        return {"enc": self.lengths, "dec": self.target.lengths}


def encode(tokenizer: Any, texts: Sequence[str], limit: int | None, special: SpecialTokens = "auto") -> list[Encoding]:
    """Tokenise texts with the tokenizer's own defaults; it cuts those of more than `limit` tokens as it does itself.

    An encoder's tokenizer keeps the separator at the end of a text that it cuts.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts.
        limit: Most tokens of a text.
        special: Whether the tokenizer's own tokens are added: yes, as it does; no; or auto: yes, but no second start
            token to a text that begins with it (as one that a chat template made).

    Raises:
        UsageError: The limit leaves no room beside the tokens that the tokenizer adds to every text.
    """
    encodings: list[Encoding] = []
    for start in range(0, len(texts), _TOKENISE_AT_ONCE):
        part = list(texts[start : start + _TOKENISE_AT_ONCE])
        out = tokenizer(part, **_wanted(tokenizer, limit, special=special != "no"))
        encodings += [_encoding(out, i) for i in range(len(part))]
    if special != "auto":
        return encodings
    return [
        _begun(tokenizer, e, text, limit) if _starts_twice(tokenizer, e) else e
        for e, text in zip(encodings, texts, strict=True)
    ]


def _starts_twice(tokenizer: Any, encoding: Encoding) -> bool:
    """Return whether the start token is in front twice: once from the tokenizer, once from the text."""
    first = encoding.ids[:2].tolist()
    start = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    added, of_text = encoding.offsets[:2].tolist() if len(first) > 1 else ([0, 0], [0, 0])
    return len(first) > 1 and first[0] == first[1] and first[0] in start and added == [0, 0] and of_text[1] > of_text[0]


def _begun(tokenizer: Any, encoding: Encoding, text: str, limit: int | None) -> Encoding:
    """Return the text without the tokenizer's start token, which it brings itself."""
    if encoding.truncated and limit is not None:  # there is room for one more of its own
        encoding = _encoding(tokenizer([text], **_wanted(tokenizer, limit + 1)), 0)
    types = None if encoding.type_ids is None else encoding.type_ids[1:]
    return replace(encoding, ids=encoding.ids[1:], offsets=encoding.offsets[1:], type_ids=types, own_start=True)


def _wanted(tokenizer: Any, limit: int | None, *, pairs: bool = False, special: bool = True) -> dict[str, Any]:
    """Return how a tokenizer is called."""
    added = tokenizer.num_special_tokens_to_add(pair=pairs) if special else 0
    if limit is not None and limit < added:
        raise UsageError(
            f"--max_seq_len {limit}: the tokenizer adds {added} tokens of its own to every text; give more than that."
        )
    limits = {"truncation": "longest_first", "max_length": limit} if limit is not None else {"truncation": False}
    return {"add_special_tokens": special, "return_offsets_mapping": True, "verbose": False, **limits}


def _encoding(out: Any, i: int) -> Encoding:
    """Return one text of what a tokenizer gave."""
    return Encoding(
        ids=np.asarray(out["input_ids"][i], dtype=np.int32),
        offsets=np.asarray(out["offset_mapping"][i], dtype=np.int32).reshape(-1, 2),
        truncated=bool(out.encodings[i].overflowing),
        type_ids=np.asarray(out["token_type_ids"][i], dtype=np.int32) if "token_type_ids" in out else None,
    )


def encode_pairs(tokenizer: Any, firsts: Sequence[str], seconds: Sequence[str], limit: int | None) -> list[Encoding]:
    """Tokenise pairs of texts with the tokenizer's own separators, as multiple-choice models read them.

    Args:
        tokenizer: A fast tokenizer.
        firsts: The first text of each pair.
        seconds: The second; offsets count in the text that a token belongs to.
        limit: Most tokens of a pair; the longer text of a pair that is longer is cut first.
    """
    encodings: list[Encoding] = []
    for start in range(0, len(firsts), _TOKENISE_AT_ONCE):
        part = slice(start, start + _TOKENISE_AT_ONCE)
        pair = (list(firsts[part]), list(seconds[part]))
        out = tokenizer(*pair, **_wanted(tokenizer, limit, pairs=True))
        for i in range(len(out["input_ids"])):
            parts = [-1 if part is None else part for part in out.sequence_ids(i)]
            encodings.append(replace(_encoding(out, i), sequence_ids=np.asarray(parts, dtype=np.int8)))
    return encodings


def encode_choices(tokenizer: Any, examples: Sequence[Example], limit: int | None) -> list[Encoding]:
    """Tokenise each question with each of its choices as a pair, the choices of one question side by side.

    Args:
        tokenizer: A fast tokenizer.
        examples: Questions, with a list of texts as field `choice_texts`.
        limit: Most tokens of a pair.
    """
    choices = [cast(list[str], e.fields["choice_texts"]) for e in examples]
    firsts = [e.text for e, texts in zip(examples, choices, strict=True) for _ in texts]
    return encode_pairs(tokenizer, firsts, [text for texts in choices for text in texts], limit)


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
    types = torch.zeros_like(ids) if any(e.type_ids is not None for e in encodings) else None
    for i, encoding in enumerate(encodings):
        ids[i, : lengths[i]] = torch.from_numpy(encoding.ids.astype(np.int64))
        mask[i, : lengths[i]] = 1
        if types is not None and encoding.type_ids is not None:
            types[i, : lengths[i]] = torch.from_numpy(encoding.type_ids.astype(np.int64))
    targets = [e.target for e in encodings if e.target is not None]
    target = make_batch(rows, targets, pad) if targets else None
    return TokenBatch(tuple(rows), lengths, ids, mask, types, target)


def batches(
    encodings: Sequence[Encoding],
    batch_size: int,
    token_budget: int,
    pad: int,
    *,
    one_length: bool = False,
    switch: int | None = None,
    batch_cost: int = 32,
) -> Iterator[TokenBatch]:
    """Sort by length and cut into batches so that computing them takes least. Texts of no tokens are left out.

    The longest come first: what is allocated for them serves the others, and a memory that is too small is found out
    at once.

    What a batch takes is its slots (padding included) and a little for being a batch; the cuts that make the sum of
    it least are found by going over all of them (dynamic programming).

    Args:
        encodings: The examples of one block, in order.
        batch_size: Most rows of a batch.
        token_budget: Most slots (rows times longest) of a batch; a single longer text still makes a batch.
        pad: Id that fills padding.
        one_length: Whether all rows of a batch must have the same length, so that nothing is padded at all.
        switch: Length that no batch has rows on both sides of: at most so many tokens, or more.
        batch_cost: What a batch costs by itself, in slots.
    """
    sizes = [(e.n_tokens, 0 if e.target is None else e.target.n_tokens) for e in encodings]
    order = sorted((i for i, e in enumerate(encodings) if e.n_tokens), key=sizes.__getitem__)
    lengths = np.array([sizes[i] for i in order], dtype=np.int64).reshape(-1, 2)
    for start, stop in _cuts(lengths, batch_size, token_budget, batch_cost, one_length=one_length, switch=switch):
        rows = order[start:stop]
        yield make_batch(rows, [encodings[i] for i in rows], pad)


def _cuts(
    lengths: Int[np.ndarray, "n 2"],
    batch_size: int,
    token_budget: int,
    batch_cost: int,
    *,
    one_length: bool,
    switch: int | None,
) -> list[tuple[int, int]]:
    """Return where to cut a series of texts, ordered by length, into batches: (start, stop) of each, last first."""
    least, cut = np.zeros(len(lengths) + 1), np.zeros(len(lengths) + 1, dtype=np.int64)
    for stop in range(1, len(lengths) + 1):
        start = np.arange(stop - 1, max(0, stop - batch_size) - 1, -1)  # of the last batch: 1, 2, 3, … rows
        longest = lengths[stop - 1, 0] + np.maximum.accumulate(lengths[start, 1])
        slots = (stop - start) * longest
        allowed = (slots <= token_budget) | (start == stop - 1)
        if one_length:
            allowed &= (lengths[start] == lengths[stop - 1]).all(axis=1)
        if switch is not None:
            allowed &= (lengths[start, 0] > switch) == (lengths[stop - 1, 0] > switch)
        cost = np.where(allowed, least[start] + slots + batch_cost, np.inf)
        best = int(cost.argmin())
        least[stop], cut[stop] = cost[best], start[best]
    batches = []
    stop = len(lengths)
    while stop:
        batches.append((int(cut[stop]), stop))
        stop = int(cut[stop])
    return batches


_TRIAL_LENGTHS: Final = (9, 6, 4)
_TRIAL_TARGETS: Final = (7, 3, 5)


def random_encodings(vocab_size: int, task: ModelTask, seed: int = 1) -> list[Encoding]:
    """Return a few rows of random ids of different lengths, to try a model on.

    Args:
        vocab_size: Upper bound (exclusive) of the ids; the first three, often special, are left out.
        task: With a target where it needs one.
        seed: Of the ids.
    """
    random = np.random.default_rng(seed)

    def row(n: int, target: Encoding | None) -> Encoding:
        ids = random.integers(min(3, vocab_size - 1), vocab_size, n, dtype=np.int32)
        return Encoding(ids, np.zeros((n, 2), np.int32), truncated=False, target=target)

    targets = [row(n, None) if HEADS[task].target else None for n in _TRIAL_TARGETS]
    return [row(n, target) for n, target in zip(_TRIAL_LENGTHS, targets, strict=True)]
