"""`decision-traces csqa-enc`: the second half of workflow C."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._report import run_extraction
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, multiple_choice_job


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_extraction(MultipleChoiceConfig, multiple_choice_job, "csqa-enc", sys.argv[1:] if argv is None else argv)
