"""Whether options are of the kind that they are annotated as: Python users give anything."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from decision_traces.errors import UsageError

_KINDS: Final[dict[Any, tuple[tuple[type, ...], str]]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    Path: ((str, PathLike), "a path"),
}
"""Annotation to what may be given, and how that is called."""


def plain_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with NumPy's numbers as Python's own."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}


def refuse_other_kinds(options: Any, names: Iterable[str]) -> None:
    """Refuse values of a dataclass that its annotations do not allow; words and numbers in tuples it checks itself.

    Raises:
        UsageError: Names the first of them, and what is expected.
    """
    hints = get_type_hints(type(options))
    for name in names:
        value = getattr(options, name)
        if get_origin(hints[name]) is not tuple and not _fits(value, hints[name]):
            raise UsageError(f"{name}={short(value)}: give {_words(hints[name])}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    return value is None if hint is NoneType else isinstance(value, _KINDS[hint][0])


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    return "True or False" if hint is bool else "None" if hint is NoneType else _KINDS[hint][1]
