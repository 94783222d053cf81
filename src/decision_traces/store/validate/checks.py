"""What a check says, and how one keeps the worst of many findings."""

import math
from dataclasses import dataclass, field

# Failures named one by one; past this many only their number is given.
NAMED_FAILURES = 20


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
