"""What a user may ask of a run, and the sentences that say what was wrong with it."""

import operator
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from decision_traces.errors import NotCapturedError, SelectionError, UsageError
from decision_traces.format.arrays import ArraySpec, Dims
from decision_traces.format.meta import RunMeta
from decision_traces.format.stages import (
    CHOICE,
    DEPTH,
    HEAD,
    KV_HEAD,
    LAYER,
    STAGES,
)
from decision_traces.store.reading.arrays import StoredArray

ExampleKey = str | int | np.integer
"""An example_id, or a row number."""
Index = int | np.integer
"""A place on an axis; negative ones count from the end."""

SIDES: Final = ("dec", "enc")
KINDS: Final = ("self", "cross")
PREDICTIONS: Final = ("next", "after")
WHICH: Final = ("q", "k", "v")
RESID_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    side: tuple(s.name for s in STAGES.values() if s.capture == "resid" and not s.once and side in s.prefixes)
    for side in SIDES
}


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
    """Return the array of one attention and part (attn, q, k, v, attn_out, head_out).

    Raises:
        UsageError: There is no such side or kind, or it is the encoder that is to attend across.
    """
    checked_word(side, SIDES, "side")
    cross = checked_word(kind, KINDS, "kind") == "cross"
    if cross and side == "enc":
        raise UsageError('Only a decoder has cross-attention: ask for kind="cross" with side="dec".')
    if part.endswith("_out"):
        return f"{side}_cross_{part}" if cross else f"{side}_{part}"
    return f"{side}_{kind}_{part}"


def checked_picks(
    array: StoredArray,
    n_heads: int,
    *,
    layer: Index | None = None,
    head: Index | None = None,
    choice: Index | None = None,
) -> dict[str, int]:
    """Return axis name to the place on that axis for what was named.

    Args:
        array: The array that is to be read.
        n_heads: Query heads of the model, to explain grouped queries.
        layer: The model's own number of the layer or depth.
        head: The model's own number of the head, or key-value head.
        choice: Choice of a multiple-choice run.

    Raises:
        SelectionError: The model has no such layer or head, or the run does not keep it.
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
        name = _NAMES.get(axis, what)
        number = checked_index(value, array.whole(axis), name, _grouped(axis, array.whole(axis), n_heads))
        picks[axis] = _place(array, axis, number, name)
    return picks


def _place(array: StoredArray, axis: str, number: int, name: str) -> int:
    """Return where one of the model's own numbers stands on an axis."""
    kept = array.numbers(axis)
    if number in kept:
        return kept.index(number)
    why = None if array.dims is None or axis != LAYER else layers_that_have(array.spec, array.dims)
    if why is None or (array.dims and array.dims.layers is not None and number not in array.dims.layers):
        flag = "--layers" if axis in {LAYER, DEPTH} else "--heads"
        why = f"this run keeps {_counted(_PLURALS[axis], kept)} ({flag})"
    raise SelectionError(f"No {name} {number} here: {why}.")


def layers_that_have(spec: ArraySpec, dims: Dims) -> str | None:
    """Say which layers of a hybrid model have what an array holds; None where all have."""
    part = STAGES[spec.stage].part
    layers = None if part is None else dims.having(part)
    if part is None or layers is None:
        return None
    verb = "has" if len(layers) == 1 else "have"
    return f"only {_counted('layers', layers, 'and')} of this model {verb} {part.words}"


def _counted(noun: str, numbers: Sequence[int], last: str = "") -> str:
    """Return `layers 0, 5, 11`, `layers 1 and 3`, `layer 2`, or `no layers`."""
    if not numbers:
        return f"no {noun}"
    words = [str(number) for number in numbers]
    if len(words) == 1:
        return f"{noun.removesuffix('s')} {words[0]}"
    return f"{noun} {', '.join(words[:-1])} {last} {words[-1]}" if last else f"{noun} {', '.join(words)}"


_NAMES: Final = {DEPTH: "depth (layer of the hidden states)", KV_HEAD: "key-value head"}


_PLURALS: Final = {LAYER: "layers", DEPTH: "depths", HEAD: "heads", KV_HEAD: "key-value heads", CHOICE: "choices"}


def _grouped(axis: str, size: int, n_heads: int) -> str:
    """Explain grouped queries to whoever asked for a key or value by its query head."""
    if axis != KV_HEAD or not size or n_heads in {0, size}:
        return ""
    group = n_heads // size
    return f" Queries are grouped: {n_heads} query heads share {size}, and query head h reads from h // {group}."


def not_captured(spec: ArraySpec, stored: Sequence[str], about: RunMeta) -> NotCapturedError:
    """Return the error for an array that a run does not have.

    Args:
        spec: The array asked for.
        stored: Names of the arrays that are there.
        about: Says what was captured and what this model could not give.
    """
    if spec.name in about.missing:
        return NotCapturedError(f"This run has no {spec.name}: {about.missing[spec.name]}")
    if spec.across and about.arch != "encdec":
        return NotCapturedError(f"This run has no {spec.name}: only encoder-decoder runs have cross-attention.")
    has = ", ".join(stored) or "no arrays"
    asked, own = _family(spec.name), sorted({_family(name) for name in stored})
    if own and asked not in own:
        way = {"enc_mc": "the mcq_ accessors", "dec": 'side="dec"', "enc": 'side="enc"'}[own[0]]
        return NotCapturedError(f"This run has no {spec.name}. It has {has}: use {way} for them.")
    words = " ".join(about.capture) or "nothing"
    return NotCapturedError(
        f"This run has no {spec.name}: it captured {words} and has {has}. "
        f"Extract it again with `{spec.capture}` among the words of --capture."
    )


def _family(name: str) -> str:
    return "enc_mc" if name.startswith("enc_mc_") else name.split("_")[0]
