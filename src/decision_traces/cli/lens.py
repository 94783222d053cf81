"""`decision-traces lens`: what the model would say after each layer, and when its decisions stand."""

from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._analysis import run_analysis


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_analysis("lens", argv)
