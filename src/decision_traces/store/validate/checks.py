"""How a check keeps the worst of many findings."""

import math
from dataclasses import dataclass, field

from decision_traces.checks import NAMED_FAILURES, CheckResult


@dataclass(slots=True)
class Tally:
    """Collects the findings of one check over the pieces of one array.

    Attributes:
        name: What is checked.
        array: The array.
        detail: What the figure means.
        worst: Largest figure so far; NaN counts as infinite.
        where: Where it was.
        pieces: Findings so far.
        failures: Places that failed, the first few in words.
        failed: How many failed.
    """

    name: str
    array: str
    detail: str = ""
    worst: float | None = None
    where: str = ""
    pieces: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, figure: float, where: str, *, ok: bool) -> None:
        """Count one finding."""
        figure = math.inf if math.isnan(figure) else figure
        self.pieces += 1
        if self.worst is None or figure > self.worst:
            self.worst, self.where = figure, where
        if not ok:
            self.failed += 1
            if len(self.failures) < NAMED_FAILURES:
                self.failures.append(where)

    def result(self) -> CheckResult:
        """Return the check over all pieces."""
        if not self.failed:
            return CheckResult(self.name, True, self.worst, self.where, self.detail, self.array)
        more = self.failures[1:3]
        also = f"; also {'; '.join(more)}" if more else ""
        rest = f" and {self.failed - 3} more" if self.failed > 3 else ""
        where = self.failures[0] if self.failed == 1 else self.where or self.failures[0]
        detail = f"{self.failed} of {self.pieces} pieces fail: {self.detail}{also}{rest}"
        return CheckResult(self.name, False, self.worst, where, detail, self.array)
