"""The figures of a benchmark: raw rounds in one JSON file, and medians over them."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.measure import Measured

LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Return the spread of some values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """A contender on one set of captures.

    Attributes:
        contender: As the command line calls it.
        seconds: From the first forward pass to the last file written.
        ratio: The same over the bare forward pass of the same round; None where that was not measured.
        tokens_per_s: At the median of the seconds.
        wall_s: Median of the whole call.
        disk_bytes, n_files: What it left on disk.
        peak_bytes: The most memory its process held; None where it was not measured.
    """

    contender: str
    seconds: Spread
    ratio: Spread | None
    tokens_per_s: float
    wall_s: float
    disk_bytes: int
    n_files: int
    peak_bytes: int | None


@dataclass(slots=True)
class Results:
    """Everything that a benchmark has found so far; what its JSON file holds.

    Attributes:
        model: Name of the model.
        data: Name of the data set and split.
        n_examples, n_tokens, max_seq_len: How much of it.
        machine: See `machine.about_machine`.
        rounds: Captures → contender → one measurement a round.
        memory: Captures → contender → one measurement in a process of its own.
        unavailable: Captures → contender → why it has no figures.
        agreement: Captures → contender → array → largest relative difference from ours.
    """

    model: str
    data: str
    n_examples: int
    n_tokens: int
    max_seq_len: int
    machine: Mapping[str, Any]
    rounds: dict[str, dict[str, list[Measured]]] = field(default_factory=dict)
    memory: dict[str, dict[str, Measured]] = field(default_factory=dict)
    unavailable: dict[str, dict[str, str]] = field(default_factory=dict)
    agreement: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def captures(self) -> list[str]:
        """Return the sets of captures that something is known of, in the order in which they were measured."""
        return list(dict.fromkeys([*self.rounds, *self.memory, *self.unavailable, *self.agreement]))

    def rows(self, capture: str) -> list[Row]:
        """Return the medians of every contender that has figures for a set of captures."""
        found = self.rounds.get(capture, {})
        bare = [measured.seconds for measured in found.get(LIMIT, [])]
        return [self._row(name, capture, found[name], bare) for name in CONTENDERS if found.get(name)]

    def _row(self, name: str, capture: str, rounds: list[Measured], bare: list[float]) -> Row:
        seconds = Spread.of([m.seconds for m in rounds])
        ratios = [m.seconds / limit for m, limit in zip(rounds, bare, strict=False)]  # the last round may be cut
        apart = self.memory.get(capture, {}).get(name, rounds[-1])
        return Row(
            contender=name,
            seconds=seconds,
            ratio=Spread.of(ratios) if ratios else None,
            tokens_per_s=self.n_tokens / seconds.median,
            wall_s=statistics.median(m.wall_s for m in rounds),
            disk_bytes=rounds[-1].disk_bytes,
            n_files=rounds[-1].n_files,
            peak_bytes=apart.peak_bytes,
        )

    def save(self, path: Path) -> None:
        """Write everything to a file, so that a run that is cut keeps what it has."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        told["rounds"] = {
            capture: {name: [Measured(**m) for m in rounds] for name, rounds in found.items()}
            for capture, found in told["rounds"].items()
        }
        told["memory"] = {
            capture: {name: Measured(**m) for name, m in found.items()} for capture, found in told["memory"].items()
        }
        return cls(**told)
