"""`decision-traces attention`: what every head of a run looks at."""

from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._analysis import run_analysis


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_analysis("attention", argv)
