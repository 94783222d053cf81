"""`decision-traces compare`: how right answers differ from wrong ones, or any groups, in all that a run holds."""

from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._analysis import run_analysis


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_analysis("compare", argv)
