"""`decision-traces nexttok`: workflow A."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._report import run_extraction
from decision_traces.extract.next_token import NextTokenConfig, next_token_job


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_extraction(NextTokenConfig, next_token_job, "nexttok", sys.argv[1:] if argv is None else argv)
