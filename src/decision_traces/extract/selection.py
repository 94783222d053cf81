"""What a run keeps: which arrays the model can give, and which layers, heads and positions were asked for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Final

from decision_traces.errors import UnsupportedArchitecture, UsageError
from decision_traces.format.arrays import ArraySpec, Dims, Positions, Side, arrays_for
from decision_traces.format.stages import (
    CAPTURES,
    CROSS,
    MLP,
    PARTS,
    SELF,
    STAGES,
    VOCAB,
    Prefix,
)
from decision_traces.model.structure import ModuleStructure, Stack
from decision_traces.tracing.self_check.evidence import stack_dims

_WORDS: Final[Mapping[str, Positions]] = {"all": "all", "next": "next", "last": "last"}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Layers or heads that a flag names.

    Attributes:
        flag: The flag, for messages.
        text: As given: `all`, or numbers and ranges such as `0,5,-1` or `0-3`.
        values: The numbers, ascending and each once; negative ones count from the end; None for all.
    """

    flag: str
    text: str
    values: tuple[int, ...] | None

    @classmethod
    def of(cls, flag: str, text: str, what: str) -> "Numbers":
        """Read a flag.

        Raises:
            UsageError: The text is of another form.
        """
        return cls(flag, text, parse_numbers(text, flag, what))

    def within(self, size: int, what: str) -> tuple[int, ...] | None:
        """Return the numbers counted from 0, where there are so many; None for all.

        Raises:
            UsageError: A number is outside.
        """
        if self.values is None:
            return None
        outside = [n for n in self.values if not -size <= n < size]
        if outside:
            raise UsageError(
                f"{self.flag} {self.text}: there is no {outside[0]}; this model has {what} 0 to {size - 1}."
            )
        return tuple(sorted({n % size for n in self.values}))


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user asked for, resolved to values.

    Attributes:
        capture: The `--capture` words, each once.
        layers, heads: Which of them.
        positions: Which token positions: `all`, `next`, `last`, or numbers from 0.
    """

    capture: tuple[str, ...]
    layers: Numbers
    heads: Numbers
    positions: Positions

    @classmethod
    def of(cls, capture: Iterable[str], layers: str, heads: str, positions: str) -> "Selection":
        """Read the flags, as the command line has them.

        Raises:
            UsageError: A word that is no capture, or numbers of another form.
        """
        words = tuple(dict.fromkeys(capture))
        unknown = [word for word in words if word not in CAPTURES]
        if unknown:
            raise UsageError(f"--capture {' '.join(unknown)}: the choices are {', '.join(CAPTURES)}.")
        return cls(
            words,
            Numbers.of("--layers", layers, "layers"),
            Numbers.of("--heads", heads, "heads"),
            _WORDS[positions] if positions in _WORDS else _position_numbers(positions),
        )

    def positions_within(self, n_positions: int) -> Positions:
        """Return the positions of an axis of T slots.

        Raises:
            UsageError: There is no such position.
        """
        if isinstance(self.positions, tuple) and max(self.positions) >= n_positions:
            raise UsageError(
                f"--positions {','.join(map(str, self.positions))}: there are positions 0 to {n_positions - 1} "
                "(--max_seq_len)."
            )
        return self.positions


def _position_numbers(text: str) -> tuple[int, ...]:
    numbers = parse_numbers(text, "--positions", "positions (or all, next, last)") or ()
    if min(numbers) < 0:
        raise UsageError(f"--positions {text}: positions count from 0; the end of a text is `last`.")
    return numbers


def as_words(given: object, name: str) -> tuple[str, ...]:
    """Return the words that a field holds: as a list, or in one text as on the command line.

    Raises:
        UsageError: The field holds something else.
    """
    words = given.split() if isinstance(given, str) else given
    found = tuple(words) if isinstance(words, Iterable) else ()
    if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in found):
        raise UsageError(f"{name}={given!r}: give words, such as {name}=('hidden', 'attn').")
    return found


def as_numbers(given: object, name: str) -> str:
    """Return the text that a flag of numbers takes, from a number, a list of numbers, or the text itself.

    Raises:
        UsageError: The field holds something else.
    """
    if isinstance(given, str):
        return given
    numbers = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(number, Integral) for number in numbers):
        raise UsageError(f"{name}={given!r}: give 'all', or numbers such as {name}=[0, 5, -1].")
    return ",".join(str(int(number)) for number in numbers)


def parse_numbers(text: str, flag: str, what: str) -> tuple[int, ...] | None:
    """Return the numbers that a flag names, ascending and each once; None for `all`.

    Args:
        text: `all`, or numbers and ranges, separated by commas; negative ones count from the end.
        flag: The flag, for the message.
        what: What is counted, for the message.

    Raises:
        UsageError: The text is of another form.
    """
    if text == "all":
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().rpartition("-")
        try:
            numbers |= set(range(int(first), int(last) + 1)) if dash and first else {int(part)}
        except ValueError:
            raise UsageError(f"{flag} {text}: give all, or {what} such as 0,5,-1 or 0-3.") from None
    if not numbers:
        raise UsageError(f"{flag} {text}: names none.")
    return tuple(sorted(numbers))


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run will hold of a model.

    Attributes:
        specs: The arrays.
        sides: The sizes of each side, and what of it is kept.
        missing: Array to the reason why the model cannot give it though its capture was asked for.
    """

    specs: tuple[ArraySpec, ...]
    sides: Mapping[Side, Dims]
    missing: Mapping[str, str]


def choose(
    selection: Selection,
    structure: ModuleStructure,
    prefixes: Iterable[Prefix],
    lengths: Mapping[Side, int],
    *,
    n_examples: int,
    n_choices: int,
    vocab_size: int,
) -> Kept:
    """Decide what a run holds.

    Args:
        selection: What was asked for.
        structure: What the model has.
        prefixes: What the names of its arrays begin with; one a side.
        lengths: T of each side, in tokens.
        n_examples: Rows of the run.
        n_choices: Choices of an example.
        vocab_size: Width of the logits; 0 for a model without a language-modelling head.

    Raises:
        UsageError: A layer, head or position that is not there.
        UnsupportedArchitecture: The model gives nothing of a capture that was asked for.
    """
    sides = {
        side: _dims(selection, structure, side, lengths, n_examples, n_choices, vocab_size) for side in structure.stacks
    }
    specs: list[ArraySpec] = []
    missing: dict[str, str] = {}
    for prefix in prefixes:
        for spec in arrays_for(prefix, selection.capture):
            reason = _reason(spec, structure, sides[spec.side])
            if reason is None:
                specs.append(spec)
            elif reason:
                missing[spec.name] = reason
    for word in selection.capture:
        if not any(spec.capture == word for spec in specs):
            why = next((r for name, r in missing.items() if _captured_by(name, word, prefixes)), "it has no such part")
            raise UnsupportedArchitecture(f"--capture {word}: this model cannot give it ({why}). Leave {word} out.")
    return Kept(tuple(specs), sides, missing)


def _captured_by(name: str, word: str, prefixes: Iterable[Prefix]) -> bool:
    return any(spec.name == name for prefix in prefixes for spec in arrays_for(prefix, (word,)))


def _reason(spec: ArraySpec, structure: ModuleStructure, dims: Dims) -> str | None:
    """Return why an array is not kept: None if it is, empty if nobody would expect it of this model."""
    stack = structure.stacks[spec.side]
    part = STAGES[spec.stage].part
    if spec.across and not stack.attention(cross=True):
        return stack.missing.get(spec.stage, "")
    if spec.stage in stack.missing:
        return stack.missing[spec.stage]
    if part is not None and not stack.layers_having(part):
        return f"none of its layers has {part.words}"
    if VOCAB in spec.axes and (spec.side != structure.main.side or not dims.vocab_size):
        return "the decoder gives them" if spec.side != structure.main.side else "it has no language-modelling head"
    if part is not None and not dims.layers_of(spec.stage):
        return f"none of the layers kept (--layers) has {spec.stage}"
    return None


def _dims(
    selection: Selection,
    structure: ModuleStructure,
    side: Side,
    lengths: Mapping[Side, int],
    n_examples: int,
    n_choices: int,
    vocab_size: int,
) -> Dims:
    stack = structure.stacks[side]
    main = side == structure.main.side
    which = "" if len(structure.stacks) == 1 else "decoder " if main else "encoder "
    if selection.heads.values is not None:
        _refuse_heads(stack)
    captured = [stage for stage in STAGES.values() if stage.capture in selection.capture]
    parts = {stage.part for stage in captured if stage.part} | {SELF, CROSS, MLP}
    having = {part: _some(stack.layers_having(part), stack.n_layers) for part in PARTS if part in parts}
    whole = stack_dims(stack, n_examples, lengths[side], lengths["enc"] if len(structure.stacks) > 1 and main else 0)
    return replace(
        whole.with_parts({**having, CROSS: having[CROSS] or None}),
        widths={axis: n for axis, n in whole.widths.items() if any(axis in stage.axes for stage in captured)},
        n_choices=n_choices,
        vocab_size=vocab_size if main else 0,
        layers=selection.layers.within(stack.n_layers, f"{which}layers"),
        heads=selection.heads.within(whole.n_heads, f"{which}heads"),
        positions=selection.positions_within(lengths[side]) if main else "all",
    )


def _refuse_heads(stack: Stack) -> None:
    """Refuse a choice of heads where layers differ in them: head 5 would not be the same, or not be there."""
    plans = (*stack.attention(cross=False), *stack.attention(cross=True))
    if len({(plan.n_heads, plan.n_kv_heads) for plan in plans}) > 1:
        raise UsageError("--heads: the layers of this model differ in their heads; keep all (leave --heads out).")


def _some(numbers: Sequence[int], size: int) -> tuple[int, ...] | None:
    return None if len(numbers) == size else tuple(numbers)
