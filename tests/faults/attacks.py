"""Reading runs that were mutated, in every way there is: `python attacks.py FIRST COUNT` prints what is no sentence.

A process of its own, because pytest has every shape and type in the package checked besides, which no user has.
What the mutation of a seed is, `mutate(run, seed)` says on a copy of the run that `RUNS[seed % len(RUNS)]` makes.
"""

import json
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from faults.mutations import mutate
from support.runs import CHOICES, DECODER, ENCDEC, SELECTED, TinyRun, build_run

from decision_traces.errors import TraceError
from decision_traces.page import resources
from decision_traces.page.runs import PageRun
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.files.runs import list_runs
from decision_traces.store.reading.trace_store import TraceStore
from decision_traces.store.validate.run import validate_run

KINDS = (
    DECODER,
    CHOICES,
    ENCDEC,
    SELECTED,
    TinyRun(side="enc", objective="masked"),
    TinyRun(format_version="1.0"),
    TinyRun(layout="v2"),
)
RUNS = tuple(replace(run, n_heads=2, capture=("attn", "hidden"), heads=None) for run in KINDS)
"""One of each kind: formats, sides, choices, selections, and an older tool's."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """End what takes longer."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(make: Callable[[], object]) -> None:
    """Let a thing be read, or refused in a sentence."""
    with suppress(TraceError):
        make()


def read(run: Path) -> None:
    """Read a run as a notebook would, each thing whether or not the one before could be read."""
    store = TraceStore(run)
    for name in ("tokens", "columns", "n", "T", "L", "H", "n_choices", "d_head", "d_model", "sides", "spans"):
        refused(lambda name=name: getattr(store, name))
    calls = (lambda: repr(store), store.arrays, lambda: store.text(0), lambda: store.encodings(0, trim=True))
    for call in (*calls, lambda: store.dims(store.sides[0]), lambda: store.record(0), lambda: store.positions(0)):
        refused(call)
    for name in store.stored():
        choice = 0 if name.startswith("enc_mc") else None
        refused(lambda name=name, choice=choice: store._read(name, 0, choice=choice, trim=True))
        refused(lambda name=name: store.gather(name, position="last"))


def look(run: Path) -> None:
    """Ask for everything that the page shows of the first example, and of the list."""
    page = PageRun("run", ResultsPlace(run))
    calls = (resources.rows, resources.search, resources.row)
    for call, what in zip(calls, (0, "text", "tiny-validation-000000"), strict=True):
        refused(lambda call=call, what=what: call(page, what))
    refused(lambda: [refused(make) for _, make in resources.bundle_paths(page, 1)])


WAYS: dict[str, Callable[[Path], object]] = {
    "validate": validate_run,
    "read": read,
    "look": look,
    "ls": lambda run: list_runs(run.parent),
}


def attack(base: Path, folder: Path, seed: int) -> list[tuple[str, str, str]]:
    """Return for a seed what ended in something that is no sentence of ours: way, what was done, what came."""
    run, found = Path(shutil.copytree(base, folder / "run")), []
    done = mutate(run, seed)
    for name, way in WAYS.items():
        try:
            with within(20), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                way(run)
        except TraceError:
            assert name != "ls"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "decision_traces" in f.filename]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "here"
            found.append((name, done, f"{type(error).__name__}: {str(error)[:200]} at {place}"))
    shutil.rmtree(run)
    return found


def main(first: int, count: int, *more: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        bases = [Path(name) / f"base{i}" / "run" for i in range(len(RUNS))]
        for base, run in zip(bases, RUNS, strict=True):
            base.parent.mkdir()
            build_run(base, run)
        work = Path(name) / "work"
        work.mkdir()
        seeds = (*range(first, first + count), *more)
        found = [(seed, *what) for seed in seeds for what in attack(bases[seed % len(bases)], work, seed)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
