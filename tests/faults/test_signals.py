"""Ctrl-C once and twice, a polite kill, a terminal that goes away: what is finished is kept, and a sentence says so."""

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faults.processes import INDEX, ROOT, Ended, Process, blocks_of, partial_of, until
from faults.runs import N_TEXTS, assert_same, content_of

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
COULD_NOT_SAY = {1, 129, 120}  # 120: Python itself could not flush what it had to say


@pytest.fixture
def goes_on(begin, wanted) -> Callable[[Path], None]:
    """Check that a run that was stopped can be gone on with, and ends as one that was left alone."""

    def check(run: Path) -> None:
        assert not run.exists()
        assert begin(run, "--resume").wait().code == 0
        assert_same(content_of(run), wanted)

    return check


@pytest.fixture
def running(begin, tmp_path: Path) -> Callable[..., Process]:
    """Start the command for `tmp_path/run` and return when some blocks are finished."""

    def start(**how) -> Process:
        process = begin(tmp_path / "run", **how)
        until(lambda: len(blocks_of(tmp_path / "run")) > 1)
        return process

    return start


def told(ended: Ended, run: Path) -> int:
    """Return how many examples a stopped command says are kept, and see that it says how to go on."""
    found = re.fullmatch(
        rf"Stopped\. (\d+) of {N_TEXTS} examples are kept in {re.escape(str(partial_of(run)))}; the same command with "
        rf"--out_dir {re.escape(str(run))} --resume goes on from there, deleting that folder starts over\.",
        ended.said(),
    )
    assert found, ended
    return int(found[1])


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_once_it_stops_and_says_what_is_kept(number: signal.Signals, running, goes_on, whole, tmp_path: Path) -> None:
    process = running()
    process.signal(number)
    ended = process.wait()
    assert ended.code == CODES[number]
    block_rows = json.loads((whole / "meta.json").read_text())["block_rows"]
    assert told(ended, tmp_path / "run") == len(blocks_of(tmp_path / "run")) * block_rows
    if number == signal.SIGINT:
        goes_on(tmp_path / "run")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.long) for turn in range(1, 20))])
def test_twice_it_stops_at_once(first: signal.Signals, turn: int, running, begin, tmp_path: Path) -> None:
    pause = random.Random(turn).random() / 10 if turn else 0.0
    process = running()
    process.signal(first)
    time.sleep(pause)
    process.signal(signal.SIGINT)
    began = time.monotonic()
    ended = process.wait()
    assert time.monotonic() - began < 2, pause
    assert ended.code in {130, CODES[first]}, (pause, ended)
    assert "Traceback" not in ended.err and "Exception ignored" not in ended.err and "Warning" not in ended.err, pause
    assert not (tmp_path / "run").exists()
    assert len(blocks_of(tmp_path / "run")) > 1
    assert begin(tmp_path / "run", "--resume").wait().code == 0


def test_ctrl_c_while_the_command_is_loading_leaves_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "from decision_traces.cli.main import main; main()", "nexttok", "--model", "demo"]
    process = subprocess.Popen(
        [*argv, "--out_dir", str(tmp_path / "run")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    until(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "Stopped; nothing was left half-done.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def begun_in_a_terminal(begin, tmp_path: Path) -> Callable[..., Process]:
    """Start the command in a terminal that goes away when some blocks are finished."""

    def start(*, nohup: bool) -> Process:
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        process = begin(tmp_path / "run", nohup=nohup, stdout=os.ttyname(slave), stderr=os.ttyname(slave))

        def read_on() -> bool:
            with suppress(BlockingIOError):
                os.read(master, 1 << 16)
            return len(blocks_of(tmp_path / "run")) > 1

        until(read_on)
        os.close(slave)
        os.close(master)
        return process

    return start


def test_a_terminal_that_goes_away_stops_the_run_in_good_order(begun_in_a_terminal, goes_on, tmp_path: Path) -> None:
    assert begun_in_a_terminal(nohup=False).wait().code in COULD_NOT_SAY
    goes_on(tmp_path / "run")


def test_a_terminal_that_goes_away_from_a_command_that_ignores_it_harms_nothing(
    begun_in_a_terminal, begin, wanted, tmp_path: Path
) -> None:
    code, run = begun_in_a_terminal(nohup=True).wait().code, tmp_path / "run"
    assert run.exists() or (code != 0 and begin(run, "--resume").wait().code == 0)
    assert_same(content_of(run), wanted)


def test_streams_that_are_closed_are_no_reason_to_stop(begin, commands, wanted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert begin(run, stdout=None, stderr=None).wait().code == 0
    assert_same(content_of(run), wanted)
    assert commands.run(INDEX, run, "--validate").code == 0


@pytest.mark.parametrize(("stream", "n_lines"), [("stdout", 1), ("stderr", 3)])
def test_a_reader_that_has_read_enough(stream: str, n_lines: int, begin, goes_on, wanted, tmp_path: Path) -> None:
    pipe, run = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    with subprocess.Popen(["head", f"-{n_lines}", str(pipe)], stdout=subprocess.PIPE, text=True) as head:
        process = begin(run, **{stream: str(pipe)})
        said, _ = head.communicate(timeout=60)
    ended = process.wait()
    assert "Traceback" not in ended.err
    if stream == "stdout":  # which is written to when the run has its name
        assert said == f"Run: {run}\n"
        assert_same(content_of(run), wanted)
    else:
        assert said.splitlines()[2] == "Probing the model and certifying the captures"
        assert ended.code in COULD_NOT_SAY
        goes_on(run)
