"""`decision-traces nexttok`: workflow A."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._report import run_extraction
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_extraction(NextTokenConfig, extract_next_token, "nexttok", sys.argv[1:] if argv is None else argv)
