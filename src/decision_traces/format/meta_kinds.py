"""What a value of a JSON file may be: each kind returns it as a Python value, or names what it should be.

A kind is a function that raises `ValueError` with a few words. Numbers have bounds, so that no file can make a reader
build more than it holds.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeVar

Value = TypeVar("Value")
Kind = Callable[[object], Value]

_SHOWN: Final = 40


def _unfit(value: object, expected: str) -> ValueError:
    shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
    return ValueError(f"{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'} is not {expected}")


def text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise _unfit(value, "a text")
    return value


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _unfit(value, "true or false")
    return value


def number(value: object) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or math.isnan(value):
        raise _unfit(value, "a finite number")
    return float(value)


def count(most: int) -> Kind[int]:
    """A whole number from 0 to `most`."""

    def kind(value: object) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise _unfit(value, f"a whole number from 0 to {most}")
        return value

    return kind


def one_of(*words: str) -> Kind[Any]:
    """One of a few words."""

    def kind(value: object) -> str:
        if value not in words or not isinstance(value, str):
            raise _unfit(value, f"one of {', '.join(words)}")
        return value

    return kind


def none_or(inner: Kind[Value]) -> Kind[Value | None]:
    """Null, or what `inner` is."""
    return lambda value: None if value is None else inner(value)


def either(first: Kind[Any], second: Kind[Any]) -> Kind[Any]:
    """What `first` is, or else what `second` is."""

    def kind(value: object) -> Any:
        try:
            return first(value)
        except ValueError:
            return second(value)

    return kind


def many(inner: Kind[Value]) -> Kind[tuple[Value, ...]]:
    """A list of what `inner` is."""

    def kind(value: object) -> tuple[Value, ...]:
        if not isinstance(value, list | tuple):
            raise _unfit(value, "a list")
        return tuple(inner(one) for one in value)

    return kind


def each_once(most: int) -> Kind[tuple[int, ...]]:
    """A list of whole numbers from 0 to `most`, each once."""
    whole_numbers = many(count(most))

    def kind(value: object) -> tuple[int, ...]:
        numbers = whole_numbers(value)
        if len(set(numbers)) < len(numbers):
            raise _unfit(value, "numbers, each once")
        return numbers

    return kind


def ascending(most: int) -> Kind[tuple[int, ...]]:
    """A list of whole numbers from 0 to `most`, ascending, each once."""
    whole_numbers = many(count(most))

    def kind(value: object) -> tuple[int, ...]:
        numbers = whole_numbers(value)
        if any(b <= a for a, b in pairwise(numbers)):
            raise _unfit(value, "ascending numbers, each once")
        return numbers

    return kind


def named(inner: Kind[Value]) -> Kind[dict[str, Value]]:
    """An object whose every entry is what `inner` is."""

    def kind(value: object) -> dict[str, Value]:
        mapping = anything_named(value)
        return {name: _of(repr(name)[:_SHOWN], inner, one) for name, one in mapping.items()}

    return kind


def _of(name: str, inner: Kind[Value], value: object) -> Value:
    try:
        return inner(value)
    except ValueError as error:
        raise ValueError(f"{name}, {error}") from error


def anything_named(value: object) -> dict[str, Any]:
    """An object; its entries are whatever they are."""
    if not isinstance(value, Mapping):
        raise _unfit(value, "an object")
    return dict(value)


def entries(value: object, kinds: Mapping[str, Kind[Any]]) -> dict[str, Any]:
    """Return those entries of an object that have a kind; others are of a newer format, and not looked at."""
    mapping = anything_named(value)
    return {name: _of(name, kind, mapping[name]) for name, kind in kinds.items() if name in mapping}
