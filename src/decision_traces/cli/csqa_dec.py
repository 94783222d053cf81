"""`decision-traces csqa-dec`: workflow B."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._report import run_extraction
from decision_traces.extract.answer import AnswerConfig, answer_job


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_extraction(AnswerConfig, answer_job, "csqa-dec", sys.argv[1:] if argv is None else argv)
