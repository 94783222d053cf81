"""Two processes on one folder: the second is refused at once while the first lives, and welcome when it is dead."""

import signal
from pathlib import Path

import pytest
from faults.processes import NEXTTOK, blocks_of, files_of, partial_of, until
from faults.runs import assert_same, content_of

LOCK = ".lock"
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
            assert f"{partial_of(run)} is being written by another process" in second.said(), flags
            assert "--out_dir" in second.said(), flags
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


def test_of_two_that_begin_together_one_is_refused(begin, wanted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(5):  # on a busy machine one may end before the other has begun, which then replaces its run
        both = [begin(run, "--overwrite").wait for _ in range(2)]
        ended = sorted((wait() for wait in both), key=lambda one: one.code)
        assert_same(content_of(run), wanted)
        if ended[1].code:
            break
    assert [one.code for one in ended] == [0, 1]
    assert "Traceback" not in ended[1].err
    assert ended[1].said().startswith("error: ")


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
