"""Open, read and check runs one after the other, and say what each made of it and what memory was taken by then.

    python probing.py RUN...

The first run is a whole one, after which memory is counted. Prints one line of JSON for each of the others.
"""

import json
import resource
import signal
import sys
import warnings
from pathlib import Path

from decision_traces import TraceStore
from decision_traces.errors import TraceError
from decision_traces.store.files.runs import list_runs
from decision_traces.store.validate.run import failures, validate_run

PATIENCE_S = 20


def read_all(run: Path) -> None:
    """Read every array example by example, then the table."""
    store = TraceStore(run)
    for name in store.stored():
        array = store.array(name)
        for row in range(min(store.n, 3)):
            array.read(example=row)
    store.tokens.shape  # noqa: B018 - read for its errors


def probe(run: Path) -> list[str]:
    """Return what is said against a run, by its readers and by its checks."""
    said = []
    try:
        read_all(run)
    except TraceError as error:
        said.append(str(error))
    said += [f"{check.name}: {check.where}: {check.detail}" for check in failures(validate_run(run))]
    list_runs(run.parent)
    return said


def peak() -> int:
    """Return the most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(whole: str, *runs: str) -> None:
    """Probe and print."""
    warnings.simplefilter("ignore")
    probe(Path(whole))
    before = peak()
    for run in runs:
        signal.alarm(PATIENCE_S)
        said = probe(Path(run))
        sys.stdout.write(json.dumps({"run": run, "said": said, "bytes": peak() - before}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
