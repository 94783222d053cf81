"""`--overwrite`, killed at every call that changes a file: the old run or the new one has the name, no byte lost.

Calls are counted, so each instant is reached once, with a system that can exchange two names at once and without.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.processes import NEXTTOK, Commands, files_of

from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.validate.run import failures, validate_run


@pytest.fixture(scope="module")
def small(commands: Commands, tiny_folder, tmp_path_factory) -> Callable[..., list[object]]:
    """The flags of the smallest extraction, but for `--out_dir`."""
    place = tmp_path_factory.mktemp("small")
    (place / "lines.txt").write_text("one\ntwo\nthree\n")
    usual = ["--model_path", tiny_folder("gpt2"), "--text_file", place / "lines.txt", "--capture", "hidden", "qkv"]
    return lambda run, n: [*usual, "--limit", n, "--out_dir", run]


@pytest.fixture(scope="module")
def old(commands: Commands, small, tmp_path_factory) -> Path:
    """A complete run of one example."""
    run = tmp_path_factory.mktemp("old") / "run"
    assert commands.run(NEXTTOK, *small(run, 1)).code == 0
    return run


def decisive(calls: list[str]) -> range:
    """Return the calls at which the name goes from the old run to the new one, and the next."""
    named = [i for i, call in enumerate(calls) if call.split()[0] in {"exchange", "os.rename"} and is_whole_run(call)]
    assert len(named) == 2, calls
    return range(named[0], named[1] + 2)


def is_whole_run(call: str) -> bool:
    """Whether a call is about a whole run, not a file in it."""
    return call.split()[1] in {"/run", "/.run.partial"}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["decisive", "every"])
def test_the_old_run_or_the_new_one_has_the_name_at_every_instant(
    every: bool, exchange: bool, commands: Commands, small, old: Path, tmp_path: Path, record_property
) -> None:
    place = tmp_path / "traces"
    run, heard = place / "run", tmp_path / "heard"

    def replace(at: int | None) -> int:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(old, run)
        how = {"folder": str(place), "at": at, "heard": str(heard), "exchange": exchange}
        return commands.start(NEXTTOK, *small(run, 2), "--overwrite", instants=how).wait().code

    before = files_of(old)
    assert replace(None) == 0
    calls = heard.read_text().splitlines()
    found = {"old": 0, "new": 0, "aside": 0}
    for at in range(len(calls)) if every else decisive(calls):
        when = (at, calls[at])
        assert replace(at) == -9, when
        there = run.is_dir()
        assert there or not exchange, when
        n = OpenRun(run).n  # which gives the name back where it was lost between two renames
        assert files_of(run) == before if n == 1 else n == 2, when
        assert failures(validate_run(run)) == [], when
        found[("old" if there else "aside") if n == 1 else "new"] += 1
        again = commands.run(NEXTTOK, *small(run, 3), "--overwrite")
        assert again.code == 0, (when, again)
        assert OpenRun(run).n == 3, when
        assert [path.name for path in place.iterdir()] == ["run"], when
    assert found["old"] and found["new"] and bool(found["aside"]) != exchange, found
    record_property("instants", found)
