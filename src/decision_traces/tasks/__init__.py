"""The kinds of decision that can be traced: one module each, with all that the rest of the package asks about it.

A new kind is a module here, a line in `TASKS`, and what runs a model for it in `extract`.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from decision_traces.format.columns import Column
from decision_traces.tasks.encode import ENCODE
from decision_traces.tasks.masked_token import MASKED_TOKEN
from decision_traces.tasks.multiple_choice import MULTIPLE_CHOICE
from decision_traces.tasks.next_token import NEXT_TOKEN
from decision_traces.tasks.prompt_choice import PROMPT_CHOICE
from decision_traces.tasks.sequence_to_sequence import SEQUENCE_TO_SEQUENCE
from decision_traces.tasks.task import Task

TASKS: Final[dict[str, Task]] = {
    task.objective: task
    for task in (NEXT_TOKEN, SEQUENCE_TO_SEQUENCE, MASKED_TOKEN, PROMPT_CHOICE, MULTIPLE_CHOICE, ENCODE)
}
"""All kinds by their name in the meta."""

__all__ = [
    "ENCODE",
    "MASKED_TOKEN",
    "MULTIPLE_CHOICE",
    "NEXT_TOKEN",
    "PROMPT_CHOICE",
    "SEQUENCE_TO_SEQUENCE",
    "TASKS",
    "Task",
    "column_names",
    "task_of",
]


def task_of(objective: str, columns: Callable[[], Collection[str]]) -> Task:
    """Return the kind of decision of a run.

    Args:
        objective: What its meta names.
        columns: Gives the columns of its tokens.parquet. They are asked where no such kind is known, as of older
            tools; where they say nothing either, the run is one of texts without a decision.
    """
    if objective in TASKS:
        return TASKS[objective]
    present = set(columns())
    fitting = [task for task in TASKS.values() if task.known_by and present.issuperset(task.known_by)]
    return max(fitting, key=lambda task: len(task.known_by), default=ENCODE)


def column_names() -> frozenset[str]:
    """Return the names of all columns that runs of any kind have."""
    return frozenset(column.name for column in _columns())


def _columns() -> Iterator[Column]:
    for task in TASKS.values():
        yield from task.columns
