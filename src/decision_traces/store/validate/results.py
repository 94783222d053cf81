"""Checks of what the analyses computed on a run: every result against its record, the record against the run."""

from collections.abc import Iterator

from decision_traces.checks import CheckResult
from decision_traces.errors import ResultError
from decision_traces.format.analyses import RESULTS
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.reading.results import find_result


def check_results(place: ResultsPlace) -> Iterator[CheckResult]:
    """Check seal, run, files and checksums of every result; what an earlier version left cannot be checked."""
    if place.out is not None and not any(place.result(name).is_dir() for name in RESULTS):
        where, detail = str(place.out), "no result lies there; lens, compare and others put some with --out"
        yield CheckResult("results as computed", False, where=where, detail=detail, array=where)
    for name in RESULTS:
        where = place.shown(name)
        older = place.older_files(name)
        try:
            result = None if older and not place.result(name).is_dir() else find_result(place, name)
            if result is not None:
                result.check()
        except ResultError as error:
            yield CheckResult("results as computed", False, where=where, detail=str(error), array=where)
            continue
        if result is not None:
            detail = f"{len(result.files)} files, size and CRC-32C"
            yield CheckResult("results as computed", True, 0.0, where, detail, where)
        if older:
            detail = f"without a record, not read: {', '.join(older)}; `{place.command(name)}` computes it again"
            yield CheckResult("results of earlier versions", True, where=place.folder.name, detail=detail, array=where)
