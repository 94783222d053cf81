"""Two processes on one folder: the second is refused at once while the first lives, and welcome when it is dead."""

import shutil
import signal
from pathlib import Path

import pytest
from faults.processes import NEXTTOK, blocks_of, files_of, until
from faults.runs import assert_same, content_of

from decision_traces.store.validate.run import failures, validate_run

LOCK = ".run.lock"
WAYS = ([], ["--overwrite"], ["--resume"], ["--overwrite", "--resume"])


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return every file but the lock, which holds nothing, with its bytes."""
    return {name: raw for name, raw in files_of(folder).items() if name != LOCK}


@pytest.mark.parametrize("last", [["--resume"], ["--overwrite"]], ids=" ".join)
def test_the_second_is_refused_while_the_first_lives(last: list[str], begin, wanted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begin(run)
    until(lambda: len(blocks_of(run)) > 1)
    with first.frozen():
        before = bytes_of(tmp_path)
        for flags in WAYS:
            second = begin(run, *flags).wait()
            assert second.code == 1, (flags, second)
            assert second.said() == (
                f"error: {run} is being written by another process now. Wait for it to end, or choose another place; "
                "it was left as it is."
            ), flags
            assert bytes_of(tmp_path) == before, flags
        first.signal(signal.SIGKILL)
    assert first.wait().code == -9
    done = len(blocks_of(run))
    refused = begin(run).wait()
    assert refused.code == 1 and "--resume" in refused.said() and "--overwrite" in refused.said()
    assert len(blocks_of(run)) == done
    assert begin(run, *last).wait().code == 0
    assert_same(content_of(run), wanted)


def test_the_first_is_not_harmed_by_the_second(begin, wanted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begin(run)
    until(lambda: blocks_of(run))
    others = [begin(run, *flags) for flags in WAYS]
    assert [other.wait().code for other in others] == [1, 1, 1, 1]
    assert first.wait().code == 0
    assert_same(content_of(run), wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("n", [4, pytest.param(500, marks=pytest.mark.long)])
def test_of_two_that_begin_together_one_is_refused(n: int, commands, tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\n")
    flags = ["--model_path", tiny_folder("gpt2"), "--text_file", tmp_path / "lines.txt", "--capture", "hidden"]
    place = tmp_path / "traces"
    for turn in range(n):
        run = place / f"run{turn}"
        both = [commands.start(NEXTTOK, *flags, "--out_dir", run, "--quiet") for _ in range(2)]
        good, bad = sorted((process.wait() for process in both), key=lambda one: one.code)
        assert (good.code, bad.code) == (0, 1), (turn, good, bad)
        assert len(bad.err.strip().splitlines()) == 1, bad
        assert "is being written by another process" in bad.said() or "already holds a run" in bad.said(), bad
        assert failures(validate_run(run)) == [], turn
        assert [path.name for path in place.iterdir()] == [f"run{turn}"]
        shutil.rmtree(place)


def test_the_second_is_refused_before_it_loads_a_model(begin, commands, lines, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begin(run)
    until(lambda: blocks_of(run))
    with first.frozen():
        for flags in WAYS:
            flags = [*flags, "--model_path", tmp_path / "nowhere", "--text_file", lines, "--out_dir", run]
            assert "is being written by another process" in commands.run(NEXTTOK, *flags).said(), flags
        first.signal(signal.SIGKILL)
    assert first.wait().code == -9
