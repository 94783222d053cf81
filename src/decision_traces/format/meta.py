"""What is known about a run: `meta.json` is written and read only here, every field with its kind and its bounds."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from decision_traces.format.arrays import ARRAYS, FORMAT_VERSION, Dims, ModelTask, Side, StorageDtype
from decision_traces.format.heads import HEADS
from decision_traces.format.meta_kinds import (
    Kind,
    anything_named,
    ascending,
    count,
    each_once,
    either,
    entries,
    flag,
    many,
    named,
    none_or,
    number,
    one_of,
    text,
)
from decision_traces.format.stages import PARTS, PostAttn

Arch = Literal["dec", "enc", "encdec"]


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """The version of a run's format: a reader knows all minor versions of its major one."""

    major: int
    minor: int

    def __str__(self) -> str:
        """Return `1.2`."""
        return f"{self.major}.{self.minor}"


FIRST_FORMAT: Final = Version(1, 0)
"""Had one side, kept everything of it, and called the width of values d_head."""
UNFILLED_FORMAT: Final = Version(1, 3)
"""The first whose token columns are not filled up to T."""
_FORM: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")

_LAYERS = _HEADS = 10_000
_WIDTH, _TOKENS, _CHOICES, _EXAMPLES = 1 << 20, 1 << 24, 1 << 16, 1 << 40
_BYTES: Final = 1 << 60

_DIMS: Final[Mapping[str, Kind[Any]]] = {
    "n_examples": count(_EXAMPLES),
    "n_layers": count(_LAYERS),
    "n_heads": count(_HEADS),
    "n_kv_heads": count(_HEADS),
    "d_head": count(_WIDTH),
    "d_model": count(_WIDTH),
    "n_positions": count(_TOKENS),
    "n_choices": count(_CHOICES),
    "d_value": none_or(count(_WIDTH)),
    "d_mlp": count(_WIDTH),
    "n_source": count(_TOKENS),
    "vocab_size": count(_TOKENS),
    "attention_layers": none_or(ascending(_LAYERS)),
    "cross_layers": none_or(ascending(_LAYERS)),
    "mlp_layers": none_or(ascending(_LAYERS)),
    "layers": none_or(ascending(_LAYERS)),
    "heads": none_or(ascending(_HEADS)),
    "widths": named(count(_WIDTH)),
    "parts": named(ascending(_LAYERS)),
    "positions": either(one_of("all", "next", "last"), each_once(_TOKENS)),
}
_NEEDED: Final = ("n_examples", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_model", "n_positions")
_OLD_KEYS: Final = ("n_examples", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_model", "max_seq_len")
"""Where format 1.0 has the sizes of its one side, in the same order."""

_OLD_POST_ATTN: Final[Mapping[str, PostAttn]] = {
    "residual stream after attention has written: what the MLP half reads from": "stream",
    "derived: pre_attn + attention output (the block adds attention and MLP in parallel)": "derived",
    "after the attention LayerNorm (post-LN family): what the MLP half reads from": "post_norm",
}
"""The sentences by which formats 1.0 and 1.1 say what `post_attn` is. They stay as they are, whatever we write now."""


@dataclass(frozen=True, slots=True)
class ArrayNote:
    """What is noted of one array.

    Attributes:
        shape: Its shape; None in runs of older tools.
        max_abs: Largest absolute value met at extraction, before rounding to the storage type; None if not noted.
    """

    shape: tuple[int, ...] | None = None
    max_abs: float | None = None


def _version(value: object) -> Version:
    match = _FORM.fullmatch(text(value))
    if match is None:
        raise ValueError(f"{value!r:.40} is not a version such as {FORMAT_VERSION}")
    return Version(int(match[1]), int(match[2]))


OUR_FORMAT: Final = _version(FORMAT_VERSION)


def _dims(value: object) -> Dims:
    sizes = entries(value, _DIMS)
    if missing := [name for name in _NEEDED if name not in sizes]:
        raise ValueError(f"{', '.join(missing)} missing")
    dims = Dims(**sizes)
    having = {f"{part.name}_layers": (dims.having(part), dims.n_layers) for part in PARTS}
    chosen = {"layers": (dims.layers, dims.n_layers), "heads": (dims.heads, dims.n_heads)}
    for name, (indices, limit) in {**chosen, "positions": (dims.positions, dims.n_positions), **having}.items():
        if isinstance(indices, tuple) and max(indices, default=-1) >= limit:
            raise ValueError(f"{name}: there is no {max(indices)} of {limit}")
    return dims


def _sides(value: object) -> dict[Side, Dims]:
    dims_of = entries(value, dict.fromkeys(get_args(Side), _dims))
    if not dims_of:
        raise ValueError("neither dec nor enc is there")
    return {side: dims_of[side] for side in get_args(Side) if side in dims_of}


def _arrays(value: object) -> dict[str, ArrayNote]:
    note = {"shape": many(count(_EXAMPLES)), "max_abs": number}
    notes = named(lambda one: ArrayNote(**entries(one, note)))(value)
    return {name: one for name, one in notes.items() if name in ARRAYS}


AS_KEYS: Final = "as keys"
"""Marks the mapping whose entries are keys of the file themselves."""
_FIGURE: Final = re.compile(r"(n)_\w+|mean_\w+|\w+_accuracy")
OMITTED: Final = "omitted"
"""Marks what is left out of the file where it is None, and not written as null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMeta:
    """Everything known about a run, as its `meta.json` has it: fields have the names of its keys, in its order.

    What a run of an older format or tool does not say is None, empty, or what was always so then. What does not fit
    is the same, and named in `problems`. Keys of a newer format are not looked at.

    `figures` say how often the model was right, and how sure. Which there are, a kind of decision decides: keys that
    are called n_… are counts, those called mean_… or …_accuracy numbers.
    """

    run_id: Annotated[str, text] = ""
    time: Annotated[str | float | None, either(text, number)] = None
    timings: Annotated[Mapping[str, Any], anything_named] = field(default_factory=dict)
    format_version: Annotated[Version | None, _version] = None
    model: Annotated[str, text] = ""
    model_path: Annotated[str | None, none_or(text)] = None
    model_type: Annotated[str, text] = ""
    model_class: Annotated[str, text] = ""
    model_revision: Annotated[str | None, none_or(text)] = None
    weights_digest: Annotated[str | None, none_or(text)] = None
    num_layers: Annotated[int | None, count(_LAYERS)] = None
    num_heads: Annotated[int | None, count(_HEADS)] = None
    num_kv_heads: Annotated[int | None, count(_HEADS)] = None
    head_dim: Annotated[int | None, count(_WIDTH)] = None
    d_model: Annotated[int | None, count(_WIDTH)] = None
    vocab_size: Annotated[int | None, count(_TOKENS)] = None
    sides: Annotated[Mapping[Side, Dims], _sides] = field(default_factory=dict)
    layer_heads: Annotated[Mapping[str, Any] | None, none_or(anything_named)] = None
    rows_padded: Annotated[bool, flag] = True
    pad_id: Annotated[int, count(_TOKENS)] = 0
    pad_token: Annotated[str, text] = ""
    logits_are_unembedded: Annotated[bool, flag] = True
    logit_factor: Annotated[float | None, none_or(number)] = None
    logit_cap: Annotated[float | None, none_or(number)] = None
    attention_scale: Annotated[tuple[Any, ...], many(none_or(number))] = ()
    attention_rows_sum_to_one: Annotated[bool | Mapping[str, bool], either(flag, named(flag))] = True
    final_norm: Annotated[str | None, none_or(text)] = None
    post_attn: Annotated[PostAttn | None, none_or(one_of(*get_args(PostAttn)))] = None
    task: Annotated[ModelTask | None, one_of(*get_args(ModelTask))] = None
    arch: Annotated[Arch | None, one_of(*get_args(Arch))] = None
    objective: Annotated[str, text] = ""
    dataset: Annotated[str, text] = ""
    split: Annotated[str, text] = ""
    dataset_fingerprint: Annotated[str | None, text] = None
    n_examples: Annotated[int | None, count(_EXAMPLES)] = None
    n_choices: Annotated[int | None, none_or(count(_CHOICES))] = None
    n_truncated: Annotated[int, count(_EXAMPLES)] = 0
    max_seq_len: Annotated[int | None, count(_TOKENS)] = None
    dtype: Annotated[StorageDtype | None, one_of(*get_args(StorageDtype))] = None
    capture: Annotated[tuple[str, ...], many(text)] = ()
    missing: Annotated[Mapping[str, str], named(text)] = field(default_factory=dict)
    settings: Annotated[Mapping[str, Any], anything_named] = field(default_factory=dict)
    conventions: Annotated[Mapping[str, str], named(text)] = field(default_factory=dict)
    arrays: Annotated[Mapping[str, ArrayNote], _arrays] = field(default_factory=dict)
    block_rows: Annotated[int | None, count(_EXAMPLES)] = None
    certificate: Annotated[Mapping[str, Any] | None, none_or(anything_named)] = None
    uncertified: Annotated[bool, flag] = False
    unused_weights: Annotated[tuple[str, ...], many(text)] = ()
    adapter: Annotated[Mapping[str, Any] | None, none_or(anything_named)] = None
    fresh_parameters: Annotated[tuple[str, ...], many(text)] = ()
    lineage: Annotated[Mapping[str, Any] | None, none_or(anything_named)] = None
    environment: Annotated[Mapping[str, Any], anything_named] = field(default_factory=dict)
    command: Annotated[tuple[str, ...], many(text)] = ()
    figures: Annotated[Mapping[str, int | float], named(number), AS_KEYS] = field(default_factory=dict)
    bytes: Annotated[int | None, count(_BYTES), OMITTED] = None
    hard_links: Annotated[bool | None, flag, OMITTED] = None
    manifest_crc32c: Annotated[str | None, none_or(text), OMITTED] = None
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "RunMeta":
        """Read the content of a `meta.json`; nothing raises, `problems` names what does not fit."""
        values: dict[str, Any] = {}
        problems = []
        figures: dict[str, Any] = {}
        kinds = {name: kind for name, (kind, mark) in _keys().items() if mark != AS_KEYS}
        for name in (*(name for name in kinds if name in value), *(name for name in value if name not in kinds)):
            if (kind := kinds.get(name) or _figure_kind(name)) is None:
                continue
            try:
                (values if name in kinds else figures)[name] = kind(value[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if "post_attn" not in value:
            values["post_attn"] = _OLD_POST_ATTN.get(values.get("conventions", {}).get("post_attn"))
        return cls(**values, figures=figures, problems=tuple(problems))

    def as_json(self) -> dict[str, Any]:
        """Return the content of `meta.json`, without the digest that seals it."""
        content: dict[str, Any] = {}
        for name, (_, mark) in _keys().items():
            value = _json(getattr(self, name))
            if mark == AS_KEYS:
                content |= value
            elif not (mark == OMITTED and value is None):
                content[name] = value
        return content

    # What follows from it ----------------------------------------------------------------------------------

    @property
    def ours(self) -> bool:
        """Whether a version of this package wrote the run; older tools wrote no format version."""
        return self.format_version is not None

    @property
    def tokens_filled(self) -> bool:
        """Whether lists of tokens in its tables are filled up to T, as before format 1.3 and by older tools."""
        return self.format_version is None or self.format_version < UNFILLED_FORMAT

    @property
    def data(self) -> str:
        """Data set and split, as `wikitext2/validation`."""
        return "/".join(word for word in (self.dataset, self.split) if word)

    @property
    def model_dtype(self) -> str | None:
        """Type that the model computed in."""
        return self._environment("model_dtype")

    @property
    def attention_implementation(self) -> str | None:
        """By which of transformers' implementations attention was computed."""
        return self._environment("attention_implementation")

    def _environment(self, name: str) -> str | None:
        return entry if isinstance(entry := self.environment.get(name), str) else None

    def setting(self, name: str) -> str | None:
        """Return a flag of the command that takes a text, None where it was not given."""
        return entry if isinstance(entry := self.settings.get(name), str) else None

    @property
    def seed(self) -> int:
        """Of everything random."""
        return seed if type(seed := self.settings.get("seed")) is int and -(1 << 63) <= seed < 1 << 63 else 0

    @property
    def certified(self) -> bool:
        """Whether the certificate's checks were made and hold."""
        return bool((self.certificate or {}).get("passed"))

    @property
    def random_head(self) -> bool:
        """Whether its predictions come from a head of random numbers; an encoder's new pooler predicts nothing."""
        return self.task is not None and HEADS[self.task].choices and bool(self.fresh_parameters)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Names of the certificate's checks that do not hold."""
        checks = (self.certificate or {}).get("checks")
        records = [c for c in checks if isinstance(c, Mapping)] if isinstance(checks, list) else []
        return tuple(str(c.get("name")) for c in records if not c.get("passed"))

    def sums_to_one(self, name: str) -> bool:
        """Return whether the rows of an attention array sum to one."""
        sums = self.attention_rows_sum_to_one
        return sums if isinstance(sums, bool) else sums.get(name, True)

    def dims(self, side: Side) -> Dims | None:
        """Return the sizes of a side; None where a run older than format 1.1 lacks one of them."""
        if self.sides:
            return self.sides.get(side)
        sizes = {new: getattr(self, old) for new, old in zip(_NEEDED, _OLD_KEYS, strict=True)}
        return None if None in sizes.values() else Dims(**sizes, n_choices=self.n_choices or 1)


@cache
def _keys() -> dict[str, tuple[Kind[Any], str]]:
    """Return for each key of the file its kind, and how it is marked, if it is."""
    annotations = {name: get_args(hint)[1:] for name, hint in get_type_hints(RunMeta, include_extras=True).items()}
    return {name: (kinds[0], "".join(kinds[1:])) for name, kinds in annotations.items() if kinds and callable(kinds[0])}


def _figure_kind(name: str) -> Kind[Any] | None:
    """Return the kind of a key that is a figure by its name, None where it is none."""
    match = _FIGURE.fullmatch(name)
    return None if match is None else count(_EXAMPLES) if match[1] else number


def _json(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Version):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: one for name, one in asdict(value).items() if one != {}}
    if isinstance(value, Mapping):
        return {name: _json(one) for name, one in value.items()}
    return value
