"""The result of a check of a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from decision_traces.format.arrays import TOKENS_FILE

NAMED_FAILURES: Final = 20
"""Failures named one by one; past this many only their number is given."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check over one array, table or file.

    Attributes:
        name: What was checked.
        ok: Whether it holds.
        worst: The worst figure met (a deviation, a largest value, a count), or None where there is none.
        where: Where the worst figure (or the failure) is: file, array, example, layer.
        detail: What the figure is, or what is wrong; why something was not checked.
        array: The array, table or file.
    """

    name: str
    ok: bool
    worst: float | None = None
    where: str = ""
    detail: str = ""
    array: str = ""


def rule(
    name: str,
    bad: np.ndarray,
    ids: Sequence[Any],
    detail: str,
    *,
    figures: Any = None,
    table: str = TOKENS_FILE,
) -> CheckResult:
    """Return the check that no row is bad.

    Args:
        name: What is checked.
        bad: (rows,), or (rows, ...) of which any makes the row bad.
        ids: What to call each row.
        detail: What must hold.
        figures: One number per row whose largest is the worst figure; the number of bad rows where left out.
        table: The file.
    """
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)) if len(bad) else np.zeros(0, np.int64)
    worst = float(np.max(figures)) if figures is not None and np.size(figures) else float(len(rows))
    if not len(rows):
        return CheckResult(name, True, worst, detail=detail, array=table)
    named = "; ".join(f"example {ids[row]} (row {row})" for row in rows[:NAMED_FAILURES])
    more = f" and {len(rows) - NAMED_FAILURES} more" if len(rows) > NAMED_FAILURES else ""
    return CheckResult(name, False, worst, named + more, f"{len(rows)} of {len(bad)} rows break: {detail}", table)
