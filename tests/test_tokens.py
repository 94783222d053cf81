"""Batches: every text once, right padding, limits kept."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.encoders import pair_tokenizer
from support.models import byte_tokenizer

from decision_traces.errors import UsageError
from decision_traces.tokens import Encoding, batches, encode, pad_id


def _encoding(n: int) -> Encoding:
    return Encoding(np.arange(1, n + 1, dtype=np.int32), np.zeros((n, 2), np.int32), False)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 90))
def test_every_text_with_tokens_once_within_the_limits(lengths: list[int], batch_size: int, budget: int) -> None:
    seen: list[int] = []
    for batch in batches([_encoding(n) for n in lengths], batch_size, budget, pad=77):
        rows, width = batch.input_ids.shape
        assert rows == len(batch.rows) <= batch_size
        assert rows == 1 or rows * width <= budget
        assert width == max(batch.lengths)
        for i, (row, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            assert n == lengths[row]
            assert batch.input_ids[i].tolist() == [*range(1, n + 1), *[77] * (width - n)]
            assert batch.attention_mask[i].tolist() == [1] * n + [0] * (width - n)
        seen += batch.rows
    assert sorted(seen) == [i for i, n in enumerate(lengths) if n]


def test_encoding_cuts_and_says_so() -> None:
    short, long, empty = encode(byte_tokenizer(), ["ab", "abcdef", ""], 4)
    assert (short.n_tokens, short.truncated) == (2, False)
    assert (long.n_tokens, long.truncated) == (4, True)
    assert (empty.n_tokens, empty.truncated, empty.offsets.shape) == (0, False, (0, 2))
    assert long.offsets.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_a_text_that_is_cut_keeps_the_separator_at_its_end() -> None:
    tokenizer = pair_tokenizer(types=True)
    whole, cut = encode(tokenizer, ["a", "a text that is longer than eight tokens"], 8)
    assert [tokenizer.convert_ids_to_tokens(int(e.ids[-1])) for e in (whole, cut)] == ["<e>", "<e>"]
    assert (whole.truncated, cut.truncated, cut.n_tokens) == (False, True, 8)
    plain = tokenizer("a text that is longer than eight tokens", truncation=True, max_length=8)
    assert cut.ids.tolist() == plain.input_ids
    with pytest.raises(UsageError, match="--max_seq_len 1: the tokenizer adds 2 tokens of its own"):
        encode(tokenizer, ["a"], 1)


def test_first_token_is_added_once_where_the_tokenizer_adds_one() -> None:
    (encoding,) = encode(byte_tokenizer(bos=True), ["a"], None)
    assert encoding.ids[0] == 1 and encoding.n_tokens == 2
    assert encoding.offsets[0].tolist() == [0, 0]


def test_a_text_that_begins_with_the_start_token_gets_no_second_one() -> None:
    tokenizer = byte_tokenizer(bos=True)
    plain = tokenizer("<s>abc").input_ids
    assert plain[:2] == [1, 1]
    for limit in (None, 3):
        own, other = encode(tokenizer, ["<s>abc", "abc"], limit)
        assert own.ids.tolist() == plain[1:][:limit] and own.offsets[0].tolist() == [0, 3]
        assert (own.own_start, other.own_start) == (True, False)
        assert other.ids.tolist() == plain[1:][:limit]
        assert (own.truncated, other.truncated) == (limit == 3, limit == 3)
    assert encode(tokenizer, ["<s>abc"], None, "yes")[0].ids.tolist() == plain
    assert encode(tokenizer, ["abc"], None, "no")[0].ids.tolist() == plain[2:]


def test_padding_with_id_zero_is_not_taken_for_none() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.pad_token_id == 0 and pad_id(tokenizer, 258) == 0
    assert torch.is_tensor(next(batches([_encoding(1)], 1, 1, pad_id(tokenizer, 258))).input_ids)


def test_a_pad_token_the_model_does_not_know_is_not_used() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 258
    assert pad_id(tokenizer, 258) == tokenizer.eos_token_id == 0


def test_no_batch_has_rows_on_both_sides_of_a_switch() -> None:
    lengths = [3, 16, 17, 5, 30, 16, 18]
    found = [sorted(b.lengths) for b in batches([_encoding(n) for n in lengths], 9, 10_000, 0, switch=16)]
    assert found == [[17, 18, 30], [3, 5, 16, 16]]


@pytest.mark.parametrize("one_length", [False, True])
@given(
    lengths=st.lists(st.integers(0, 40), max_size=8),
    batch_size=st.integers(1, 5),
    budget=st.integers(1, 120),
)
def test_no_other_cut_into_batches_costs_less(one_length, lengths, batch_size, budget) -> None:
    """Every way to cut the sorted texts is tried: a batch costs its slots and 32 more."""
    ordered = sorted(n for n in lengths if n)

    def cost(cut: list[list[int]]) -> float:
        fits = all(
            len(part) <= batch_size
            and (len(part) * part[-1] <= budget or len(part) == 1)
            and (part[0] == part[-1] or not one_length)
            for part in cut
        )
        return sum(len(part) * part[-1] + 32 for part in cut) if fits else float("inf")

    ways = []
    for marks in product([False, True], repeat=max(0, len(ordered) - 1)):
        ends = [0, *(i + 1 for i, mark in enumerate(marks) if mark), len(ordered)]
        ways.append([ordered[a:b] for a, b in pairwise(ends) if b > a])
    found = [
        sorted(b.lengths)
        for b in batches([_encoding(n) for n in lengths], batch_size, budget, 0, one_length=one_length)
    ]
    assert sorted(n for part in found for n in part) == ordered
    assert cost(found) == min(map(cost, ways))
