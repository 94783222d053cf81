"""What the yardstick shows: medians over the limit as a table, Markdown and a picture; the machine they hold for."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import CONTENDERS
from decision_traces.views.style import BLUE, GREY, INK, new_figure, plain, save

TITLES: Final = {
    "resid": "hidden + resid",
    "qkv": "hidden + resid + qkv",
    "everything": "everything (attn too)",
}
_PACKAGES: Final = ("torch", "transformers", "zarr", "numcodecs", "numpy", "transformer-lens", "nnsight", "torchlens")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender with one set of captures.

    Attributes:
        captures, name: Which.
        seconds: Of each round; empty where it cannot.
        ratio: Median over the median of the limit.
        tokens_per_s: Of the median.
        disk_mb, files: What it left on disk.
        cannot: Why there are no figures.
    """

    captures: str
    name: str
    seconds: tuple[float, ...] = ()
    ratio: float = 0.0
    tokens_per_s: float = 0.0
    disk_mb: float = 0.0
    files: int = 0
    cannot: str = ""

    @property
    def title(self) -> str:
        """What tables call the contender."""
        return CONTENDERS[self.name].title


def rows(found: Mapping[str, Sequence[Mapping[str, float]]], cannot: Mapping[str, str], n_tokens: int) -> list[Row]:
    """Return the rows of the table; the limit is the median over all its runs, which are the same for all captures."""
    limits = [one["seconds"] for key, runs in found.items() if key.startswith("limit/") for one in runs]
    limit = statistics.median(limits) if limits else float("nan")
    table = []
    for key in sorted({*found, *cannot}, key=_order):
        name, captures = key.split("/")
        if key in cannot:
            table.append(Row(captures, name, cannot=cannot[key]))
            continue
        seconds = tuple(one["seconds"] for one in found[key])
        median, last = statistics.median(seconds), found[key][-1]
        table.append(
            Row(captures, name, seconds, median / limit, n_tokens / median, last.get("disk_mb", 0.0),
                int(last.get("files", 0)))
        )  # fmt: skip
    return table


def _order(key: str) -> tuple[int, int]:
    name, captures = key.split("/")
    return list(TITLES).index(captures), list(CONTENDERS).index(name)


def _cells(row: Row) -> tuple[str, ...]:
    if row.cannot:
        return (TITLES[row.captures], row.title, row.cannot, "", "", "", "")
    seconds = f"{statistics.median(row.seconds):.1f} ({min(row.seconds):.1f}–{max(row.seconds):.1f})"
    disk = (f"{row.disk_mb:,.0f}", f"{row.files:,}") if row.files else ("–", "–")
    return (TITLES[row.captures], row.title, f"{row.ratio:.2f}", seconds, f"{row.tokens_per_s:,.0f}", *disk)


_HEADINGS: Final = ("captured", "", "× limit", "seconds (range)", "tokens/s", "MB on disk", "files")


def show(table: Sequence[Row], title: str) -> None:
    """Print the table."""
    shown = Table(title=title)
    for i, heading in enumerate(_HEADINGS):
        shown.add_column(heading, justify="left" if i < 2 else "right")
    for row in table:
        shown.add_row(*_cells(row))
    Console(width=130).print(shown)


def markdown(table: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|---|---|" + "---:|" * (len(_HEADINGS) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in table)]) + "\n"


def draw(table: Sequence[Row], title: str, path: Path) -> Path:
    """Draw the times over the limit, a panel for each set of captures."""
    panels = [c for c in TITLES if any(row.captures == c and row.seconds for row in table)]
    names = [n for n in CONTENDERS if n != "limit" and any(row.name == n and row.seconds for row in table)]
    figure = new_figure(8.0, 0.9 + len(panels) * (0.5 + 0.26 * len(names)))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axis, captures in zip(axes, panels, strict=True):
        shown = [row for row in table if row.captures == captures and row.name in names and row.seconds][::-1]
        bars = axis.barh([r.title for r in shown], [r.ratio for r in shown],
                         color=[BLUE if r.name == "ours" else GREY for r in shown], height=0.7)  # fmt: skip
        axis.bar_label(bars, [f"{r.ratio:.2f}" for r in shown], padding=3, fontsize=8, color=INK)
        axis.axvline(1.0, color=INK, linewidth=1, linestyle="--")
        plain(axis, TITLES[captures], "", "", grid="x")
    axes[-1].set_xlabel("time over a bare forward pass (dashed), shorter is better", fontsize=9, color=INK)
    return save(figure, path, title)


def machine() -> dict[str, Any]:
    """Return what the figures hold for: processor, threads, versions, date."""
    cpu = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")] if (
        cpu.is_file()) else []  # fmt: skip
    return {
        "platform": platform.platform(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
