"""The registry matrix, written to docs/architectures.md, with what each kind took.

    python -m benchmarks.architectures [--out docs/architectures.md]

The same as `python -m dev.architectures --out FILE`, and the seconds besides.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from decision_traces.models.load import quiet_transformers
from dev.architectures.matrix import check_class
from dev.architectures.report import KINDS, counts, markdown
from dev.architectures.tiny import model_classes


@dataclass(frozen=True)
class Settings:
    """Where the table goes."""

    out: Path = Path("docs/architectures.md")


def main(settings: Settings) -> None:
    """Check every class, write the table, print counts and seconds."""
    console = Console(highlight=False)
    logging.disable(logging.WARNING)
    with quiet_transformers():
        verdicts = [check_class(which) for kind in KINDS for which in model_classes(kind)]
    for kind, found in counts(verdicts).items():
        seconds = sum(v.seconds for v in verdicts if v.which.kind == kind)
        said = ", ".join(f"{n} {status}" for status, n in found.most_common())
        console.print(f"{kind}: {found.total()} classes, {said}; {seconds:.0f} s")
    settings.out.write_text(markdown(verdicts), encoding="utf-8")
    console.print(f"Table: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
