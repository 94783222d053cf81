"""What a user may ask of a run, and the sentences that say what was wrong with it."""

import operator
from collections.abc import Sequence
from typing import Final

import numpy as np

from decision_traces.errors import NotCapturedError, SelectionError, UsageError
from decision_traces.schema import CHOICE, DEPTH, HEAD, KV_HEAD, LAYER, ArraySpec
from decision_traces.store.arrays import StoredArray

ExampleKey = str | int | np.integer
"""An example_id, or a row number."""
Index = int | np.integer
"""A place on an axis; negative ones count from the end."""

SIDES: Final = ("dec", "enc")
KINDS: Final = ("self", "cross")
WHICH: Final = ("q", "k", "v")
STAGES: Final = ("pre_attn", "post_attn", "post_mlp")


def checked_word(value: str, valid: Sequence[str], what: str) -> str:
    """Return the word.

    Raises:
        UsageError: It is none of the valid ones, which the message lists.
    """
    if value not in valid:
        raise UsageError(f"No {what} {value!r}: valid are {', '.join(map(repr, valid))}.")
    return value


def checked_index(value: Index, size: int, what: str, note: str = "") -> int:
    """Return an index as a plain int that is not negative.

    Args:
        value: The index; negative ones count from the end.
        size: How many there are.
        what: What is counted, for the message.
        note: A sentence to add to the message.

    Raises:
        SelectionError: It is outside the valid range.
        UsageError: It is not an integer.
    """
    if isinstance(value, bool | np.bool_):
        raise UsageError(f"{what} must be an integer, not {value}.")
    try:
        index = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{what} must be an integer, not {value!r}.") from error
    if not -size <= index < size:
        valid = f"valid are 0 to {size - 1} (-{size} to -1 from the end)" if size else "there are none"
        raise SelectionError(f"No {what} {index} here: {valid}.{note}")
    return index % size


def attention_name(side: str, kind: str, part: str) -> str:
    """Return the array of one attention and part (attn, q, k, v).

    Raises:
        UsageError: There is no such side or kind.
        NotCapturedError: Cross-attention: only encoder-decoders have it.
    """
    checked_word(side, SIDES, "side")
    if checked_word(kind, KINDS, "kind") == "cross":
        raise NotCapturedError(f"This run has no {side}_cross_{part}: only encoder-decoder runs have cross-attention.")
    return f"{side}_self_{part}"


def checked_picks(
    array: StoredArray,
    n_heads: int,
    *,
    layer: Index | None = None,
    head: Index | None = None,
    choice: Index | None = None,
) -> dict[str, int]:
    """Return axis name to checked index for what was named.

    Args:
        array: The array that is to be read.
        n_heads: Query heads of the model, to explain grouped queries.
        layer: Layer or depth.
        head: Head, or key-value head.
        choice: Choice of a multiple-choice run.

    Raises:
        SelectionError: An index is outside its axis.
        UsageError: The array has no such axis.
    """
    asked = (
        ("layer", layer, (LAYER, DEPTH)),
        ("head", head, (HEAD, KV_HEAD)),
        ("choice_idx", choice, (CHOICE,)),
    )
    picks: dict[str, int] = {}
    for what, value, axes in asked:
        if value is None:
            continue
        axis = next((a for a in axes if a in array.spec.axes), None)
        if axis is None:
            raise UsageError(f"{array.spec.name} has no {what}: its axes are {', '.join(array.spec.axes)}.")
        size = array.size(axis)
        picks[axis] = checked_index(value, size, _NAMES.get(axis, what), _grouped(axis, size, n_heads))
    return picks


_NAMES: Final = {DEPTH: "depth (layer of the hidden states)", KV_HEAD: "key-value head"}


def _grouped(axis: str, size: int, n_heads: int) -> str:
    """Explain grouped queries to whoever asked for a key or value by its query head."""
    if axis != KV_HEAD or not size or n_heads in {0, size}:
        return ""
    group = n_heads // size
    return f" Queries are grouped: {n_heads} query heads share {size}, and query head h reads from h // {group}."


def not_captured(spec: ArraySpec, stored: Sequence[str], capture: Sequence[str]) -> NotCapturedError:
    """Return the error for an array that a run does not have.

    Args:
        spec: The array asked for.
        stored: Names of the arrays that are there.
        capture: The `--capture` words of the run.
    """
    has = ", ".join(stored) or "no arrays"
    asked, own = _family(spec.name), sorted({_family(name) for name in stored})
    if own and asked not in own:
        way = {"enc_mc": "the mcq_ accessors", "dec": 'side="dec"', "enc": 'side="enc"'}[own[0]]
        return NotCapturedError(f"This run has no {spec.name}. It has {has}: use {way} for them.")
    words = " ".join(map(str, capture)) or "nothing"
    return NotCapturedError(
        f"This run has no {spec.name}: it captured {words} and has {has}. "
        f"Extract it again with `{spec.capture}` among the words of --capture."
    )


def _family(name: str) -> str:
    return "enc_mc" if name.startswith("enc_mc_") else name.split("_")[0]
