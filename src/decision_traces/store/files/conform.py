"""What tables must be like to be read: columns of the schema's types, and rows whose lists go together."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from decision_traces.errors import DamagedRunError
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.tasks import Task
from decision_traces.tasks.token_outcomes import POSITION_COLUMNS

_KINDS: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    lambda kind: bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)),
)
_BY_CHOICE: Final = frozenset(c.name for c in TOKEN_COLUMNS) - {"example_id", "text"}
"""Columns that have a level of choices on top in multiple-choice runs."""

_TOKENS: Final = ("input_ids", "attention_mask", "token_type_ids", "offset_mapping", "tokens", "sequence_ids")
_TOGETHER: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (("tokens",), tuple(name for name in _TOKENS if name != "tokens")),
    (("dec_tokens",), tuple(f"dec_{name}" for name in _TOKENS if name != "tokens")),
)
"""Lists of a row that are of one length: those that must be there where any of them is, and others. See `Task`."""


def conforms(found: pa.DataType, column: Column) -> bool:
    """Return whether a column's type is of the kind the schema asks for, whatever its width."""
    if column.name in _BY_CHOICE and not _is_list(column.type):
        return _like(found, column.type) or (_is_list(found) and _like(found.value_type, column.type))
    if column.name in _BY_CHOICE and _depth(found) == _depth(column.type) + 1:
        return _like(found.value_type, column.type)
    return _like(found, column.type)


def _like(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    if _is_list(wanted) or _is_list(found):
        return _is_list(wanted) and _is_list(found) and _like(found.value_type, wanted.value_type)
    return any(kind(found) and kind(wanted) for kind in _KINDS)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _depth(kind: pa.DataType) -> int:
    return 1 + _depth(kind.value_type) if _is_list(kind) else 0


def _old_id(column: Column, kind: pa.DataType) -> bool:
    """Whether these are the ids of an older tool, which counted the examples."""
    return column.name == "example_id" and bool(pa.types.is_integer(kind))


def twice(schema: pa.Schema) -> list[str]:
    """Return the names that several columns have."""
    return sorted({name for name in schema.names if len(schema.get_all_field_indices(name)) > 1})


def check_names(schema: pa.Schema, path: Path) -> pa.Schema:
    """Return the columns of a table.

    Raises:
        DamagedRunError: Two of them have the same name.
    """
    if several := twice(schema):
        raise DamagedRunError(f"{path} is damaged: it has several columns called {', '.join(several)}.")
    return schema


def check_types(schema: pa.Schema, columns: Sequence[Column], path: Path) -> None:
    """Raise where columns are not of their type.

    Raises:
        DamagedRunError: Names them.
    """
    there = [(c, schema.field(c.name).type) for c in columns if c.name in schema.names]
    wrong = [f"{c.name} has type {kind}" for c, kind in there if not (conforms(kind, c) or _old_id(c, kind))]
    if wrong:
        raise DamagedRunError(f"{path} is damaged: {'; '.join(wrong)}.")


def check_outcomes_of(table: pa.Table, path: Path) -> pa.Table:
    """Return rows of `token_outcomes.parquet`.

    Raises:
        DamagedRunError: Columns are missing, of other types, or do not say which position they are about.
    """
    check_types(check_names(table.schema, path), POSITION_COLUMNS, path)
    if missing := [c.name for c in POSITION_COLUMNS if c.name not in table.column_names]:
        raise DamagedRunError(f"{path} is damaged: it has no column {', '.join(missing)}.")
    if table.column("pos").null_count:
        raise DamagedRunError(f"{path} is damaged: positions are missing.")
    return table


def row_problem(values: Mapping[str, Any], task: Task) -> str | None:
    """Return what is wrong with a row of `tokens.parquet`, None where its lists go together and positions are inside.

    Args:
        values: Name to value, lists as Python lists.
        task: Kind of decision of the run.
    """
    for needed, others in (*_TOGETHER, *task.together):
        group = {name: values[name] for name in (*needed, *others) if values.get(name) is not None}
        if group and (missing := [name for name in needed if name not in group]):
            return f"{', '.join(missing)} is null or not there"
        outlines = {name: _outline(name, value, nulls=name in task.may_hold_nulls) for name, value in group.items()}
        if len(set(outlines.values())) > 1 or None in outlines.values():
            return f"{', '.join(outlines)} are of different lengths, or hold nulls"
    length = len(values.get("dec_tokens") or values.get("tokens") or ())
    for name in task.positions:
        if name in values and not (isinstance(values[name], int) and -1 <= values[name] < length):
            return f"{name} is {values[name]}, outside of the {length} tokens"
    for name in task.position_lists:
        if any(not 0 <= position < length for position in values.get(name) or ()):
            return f"{name} is outside of the {length} tokens"
    return None


def _outline(name: str, value: list[Any], *, nulls: bool) -> tuple[int, ...] | None:
    """Return the lengths of a list and of the lists of choices in it; None where it holds nulls that it may not."""
    if not nulls and _holds_null(value):
        return None
    pairs = name.endswith("offset_mapping")
    inner = [v for v in value if isinstance(v, list)]
    if not inner or (pairs and not any(isinstance(pair, list) for pair in inner[0])):
        return (len(value),)
    return (len(value), *(len(v) for v in inner))


def _holds_null(value: list[Any]) -> bool:
    return any(one is None or (isinstance(one, list) and _holds_null(one)) for one in value)
