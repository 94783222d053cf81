"""`decision-traces attribution`: which parts of the model decide between the true token and its competitor."""

from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._analysis import run_analysis


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_analysis("attribution", argv)
