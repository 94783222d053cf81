"""Checks of what the analyses computed on a run: every result against its record, the record against the run."""

from collections.abc import Iterator
from pathlib import Path

from decision_traces.errors import ResultError
from decision_traces.schema import ANALYSIS_DIR, RESULTS
from decision_traces.store.checks import CheckResult
from decision_traces.store.results import find_result, older_files


def check_results(run: Path) -> Iterator[CheckResult]:
    """Check seal, run, files and checksums of every result; what an earlier version left cannot be checked."""
    for name in RESULTS:
        where = f"{ANALYSIS_DIR}/{name}"
        older = older_files(run, name)
        try:
            result = None if older and not (run / where).is_dir() else find_result(run, name)
            if result is not None:
                result.check()
        except ResultError as error:
            yield CheckResult("results as computed", False, where=where, detail=str(error), array=where)
            continue
        if result is not None:
            detail = f"{len(result.files)} files, size and CRC-32C"
            yield CheckResult("results as computed", True, 0.0, where, detail, where)
        if older:
            detail = f"without a record, not read: {', '.join(older)}; `decision-traces {name}` computes it again"
            yield CheckResult("results of earlier versions", True, where=ANALYSIS_DIR, detail=detail, array=where)
