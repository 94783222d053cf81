"""The figures as a table for the terminal and as Markdown for a page."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.agreement import MOST_DIFFERENCE
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.task import SETS
from benchmarks.results import Results, Row, Spread

_NONE: Final = "–"
_HEADINGS: Final = ("", "× limit", "seconds", "tokens/s", "whole call s", "disk MB", "files", "peak MiB")


def show(results: Results, console: Console) -> None:
    """Print a table for every set of captures, and what one must know to read them."""
    for capture in results.captures():
        table = Table(title=f"{_words(capture)}: {_about(results)}", title_justify="left")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right" if heading else "left")
        for cells in _body(results, capture):
            table.add_row(*cells)
        console.print(table)
        _show_agreement(results, capture, console)
    for note in _notes(results):
        console.print(f"- {note}")


def _show_agreement(results: Results, capture: str, console: Console) -> None:
    for name, arrays in results.agreement.get(capture, {}).items():
        worst = max(arrays.values(), default=0.0)
        verdict = "same as ours" if worst < MOST_DIFFERENCE else "NOT the same as ours"
        figures = ", ".join(f"{array} {difference:.1e}" for array, difference in arrays.items())
        console.print(f"{CONTENDERS[name].about.title}: {verdict} (largest relative difference: {figures})")


def markdown(results: Results) -> str:
    """Return everything as Markdown."""
    lines: list[str] = []
    for capture in results.captures():
        lines += [f"**{_words(capture)}**, {_about(results)}", ""]
        lines += [_line(_HEADINGS), "|---|" + "---:|" * (len(_HEADINGS) - 1)]
        lines += [_line(cells) for cells in _body(results, capture)]
        lines.append("")
    lines += [f"- {note}" for note in _notes(results)]
    return "\n".join([*lines, "", _machine(results), ""])


def agrees(results: Results) -> bool:
    """Return whether every array that was compared is the same as ours."""
    found = [d for names in results.agreement.values() for arrays in names.values() for d in arrays.values()]
    return all(difference < MOST_DIFFERENCE for difference in found)


def _words(capture: str) -> str:
    return " + ".join(SETS[capture])


def _about(results: Results) -> str:
    return (
        f"{results.model} on {results.data}, {results.n_examples} examples, T = {results.max_seq_len}, "
        f"{results.n_tokens:,} tokens"
    )


def _body(results: Results, capture: str) -> Iterator[list[str]]:
    rows = {row.contender: row for row in results.rows(capture)}
    reasons = results.unavailable.get(capture, {})
    for name, contender in CONTENDERS.items():
        if name in rows:
            yield [contender.about.title, *_cells(rows[name])]
        elif name in results.memory.get(capture, {}):
            apart = results.memory[capture][name]
            yield [contender.about.title, *[_NONE] * (len(_HEADINGS) - 2), _mib(apart.peak_bytes)]
        elif name in reasons:
            yield [f"{contender.about.title}: {reasons[name]}", *[_NONE] * (len(_HEADINGS) - 1)]


def _cells(row: Row) -> list[str]:
    return [
        _NONE if row.ratio is None else _spread(row.ratio, 2),
        _spread(row.seconds, 1),
        f"{row.tokens_per_s:,.0f}",
        f"{row.wall_s:,.1f}",
        f"{row.disk_bytes / 1e6:,.0f}" if row.disk_bytes else _NONE,
        f"{row.n_files:,}" if row.n_files else _NONE,
        _mib(row.peak_bytes),
    ]


def _spread(values: Spread, digits: int) -> str:
    if values.least == values.most:
        return f"{values.median:,.{digits}f}"
    return f"{values.median:,.{digits}f} ({values.least:,.{digits}f} to {values.most:,.{digits}f})"


def _mib(size: int | None) -> str:
    return _NONE if size is None else f"{size / 2**20:,.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(results: Results) -> Iterator[str]:
    known = {name for capture in results.captures() for name in results.rounds.get(capture, {})}
    rounds = max((len(m) for found in results.rounds.values() for m in found.values()), default=0)
    if rounds:
        yield (
            f"medians of {rounds} interleaved rounds, in brackets the least and the most; seconds from the first "
            "forward pass to the last file written; the limit is a bare forward pass of the same round"
        )
    for name, contender in CONTENDERS.items():
        fewest = min((len(found[name]) for found in results.rounds.values() if name in found), default=rounds)
        if fewest < rounds:
            yield f"{contender.about.title}: took part in {fewest} of these rounds"
        if name in known and contender.about.note:
            yield f"{contender.about.title}: {contender.about.note}"


def _machine(results: Results) -> str:
    machine = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return (
        f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"Python {machine['python']}, {packages}."
    )
