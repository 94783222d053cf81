"""`decision-traces extract`: any texts through any model."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._report import run_extraction
from decision_traces.extract.texts import TextConfig, text_job


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_extraction(TextConfig, text_job, "extract", sys.argv[1:] if argv is None else argv)
