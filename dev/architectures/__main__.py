"""`python -m dev.architectures`: which of transformers' model classes can be traced, tried out one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from decision_traces.cli._app import make_console, run_command
from decision_traces.errors import UsageError
from decision_traces.folders.plain import new_file
from decision_traces.model.load import quiet_transformers
from dev.architectures.matrix import Verdict, check_class
from dev.architectures.report import KINDS, STATUSES, counts, markdown
from dev.architectures.tiny import Kind, model_classes, no_warnings


@dataclass(frozen=True, kw_only=True)
class ArchitecturesConfig:
    """Build every class of transformers' mappings tiny, trace it, and say what holds."""

    kind: tuple[Kind, ...] = tuple(KINDS)
    """Which mappings."""
    only: tuple[str, ...] = ()
    """Model types to look at, such as llama bert; all where left out."""
    out: Path | None = None
    """Write the whole table here, as Markdown."""
    quiet: bool = False
    """Print the counts alone."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(ArchitecturesConfig, _run, argv, prog="python -m dev.architectures")


def _run(config: ArchitecturesConfig) -> int:
    classes = [c for kind in config.kind for c in model_classes(kind) if not config.only or c.model_type in config.only]
    unknown = set(config.only) - {c.model_type for c in classes}
    if unknown:
        raise UsageError(f"--only {' '.join(sorted(unknown))}: no such model type among {', '.join(config.kind)}.")
    console, verdicts = make_console(), []
    with quiet_transformers(), no_warnings(), _one_thread():
        for which in classes:
            verdicts.append(check_class(which))
            if not config.quiet:
                console.print(_line(verdicts[-1]), soft_wrap=True)
    for line in _summary(verdicts):
        console.print(line, soft_wrap=True)
    if config.out is not None:
        with new_file(config.out) as file:
            file.write(markdown(verdicts).encode())
        console.print(f"Table: {config.out}", soft_wrap=True)
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: tiny models gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _line(verdict: Verdict) -> str:
    which = verdict.which
    why = verdict.reason or ", ".join(f"no {name}" for name in verdict.missing)
    return f"{which.kind:<16}{which.model_type:<24}{verdict.status:<16}{why}".rstrip()


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["", f"{'':<16}" + "".join(f"{status:>16}" for status in STATUSES)]
    for kind, found in counts(verdicts).items():
        lines.append(f"{kind:<16}" + "".join(f"{found[status]:>16}" for status in STATUSES))
    return lines


if __name__ == "__main__":
    main()
