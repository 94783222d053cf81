"""Which decisions the examples of a run are about, as its kind of decision reads them from its table."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.requirements import what_works
from decision_traces.errors import DataError, UsageError
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import NONE, Decisions, Kind, numbers_or
from decision_traces.tasks.task import Reading


def kinds_of(store: TraceStore) -> tuple[Kind, ...]:
    """Return which decisions can be looked at in a decoder run, its own first.

    Of what comes next and what comes after a text, a run of `--positions next` or `last` keeps one.

    Raises:
        UsageError: The run has no decision that could be read at one position.
        DataError: No example of the run has a prediction.
    """
    readings = {kind: one for kind, one in store.task.decisions.items() if one.needs in store.columns}
    if not readings:
        raise UsageError(
            f"{store.run_dir} has no decision at one position of a decoder: neither next_pos nor choice_token_ids "
            f"is in its table. {what_works(store)}"
        )
    table = store.table(one.needs for one in readings.values())
    made = [kind for kind, one in readings.items() if _any_made(table, one.needs)]
    if not made:
        raise DataError(_none(store, readings.values()))
    positions = store.dims("dec").positions
    return tuple(kind for kind in made if readings[kind].is_kept(positions)) or tuple(made[:1])


def decisions_of(store: TraceStore, kind: Kind | None = None) -> Decisions:
    """Return the decisions of a decoder run, or of a masked run those at its masked tokens.

    Args:
        store: The run. Only the columns needed are read.
        kind: Which ones; the run's own where left out: the answers, or the next tokens, or what comes after the texts
            where only their last positions are kept.

    Raises:
        UsageError: The run has no such decision.
        DataError: No example of the run has a prediction.
    """
    task = store.task
    if task.many is not None and task.many.needs in store.columns:
        reading = task.many
    else:
        kinds = kinds_of(store)
        kind = kinds[0] if kind is None else kind
        if kind not in kinds:
            available = ", ".join(map(repr, kinds))
            raise UsageError(f"{store.run_dir} has no decision {kind!r} to look at, only {available}.")
        reading = task.decisions[kind]
    made = reading.read(read_columns(store, ("example_id", *reading.columns)))
    if len(made) == 0:
        raise DataError(_none(store, [reading]))
    return made


def text_note(store: TraceStore) -> str | None:
    """Return what analyses of the run's decisions leave out, in a sentence; None where that is nothing."""
    note = store.task.note
    if note is None or note.columns[0] not in store.columns:
        return None
    return note.say(read_columns(store, note.columns))


def _any_made(table: pa.Table, needs: str) -> bool:
    """Return whether any example has a decision: where there is no column of positions, all have."""
    positions = pa.types.is_integer(table.schema.field(needs).type)
    return not positions or bool(np.any(numbers_or(table, needs, NONE) >= 0))


def _none(store: TraceStore, readings: Iterable[Reading]) -> str:
    return f"{store.run_dir} holds no prediction: {next(iter(readings)).none}."
