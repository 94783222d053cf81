"""Killed at any instant (SIGKILL), a run is complete or can be gone on with, and ends as if nothing had happened.

The instants are drawn once (`SEED`) over the whole time that the command takes when it is left alone, its last steps
(tables, manifest, meta, the new name) included; each stands in its test's name as a share of that time.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.processes import INDEX, Ended, Process, blocks_of, files_of, partial_of, until
from faults.runs import N_TEXTS, assert_same, content_of

SEED = 20261124
LONGER = 1.03  # the last instants may come when all is done


def instants(n: int) -> list[float]:
    """Return n instants, as shares of the command's time: one in each n-th of it."""
    rng = random.Random(SEED + n)
    return [(i + rng.random()) / n for i in range(n)]


def several(few: int, many: int) -> list:
    """Return the few instants of every session and the many of the long one."""
    marked = [(at, ()) for at in instants(few)] + [(at, pytest.mark.long) for at in instants(many)]
    return [pytest.param(at, id=f"at_{at:.4f}_of_its_time", marks=marks) for at, marks in marked]


@pytest.fixture
def killed(begin, seconds: float) -> Callable[..., str]:
    """Start the command for a run, kill it at an instant, and return a line that says when."""

    def kill(run: Path, at: float, *more: object) -> str:
        process: Process = begin(run, *more)
        time.sleep(at * LONGER * seconds)
        process.signal(signal.SIGKILL)
        return f"killed after {at * LONGER * seconds:.3f} s of {seconds:.3f}: {process.wait()}"

    return kill


def shards_of(folder: Path) -> dict[int, dict[str, int]]:
    """Return the files of each block (`GROUP.zarr/KEY/c/BLOCK/...`) that a run has, and their sizes."""
    blocks: dict[int, dict[str, int]] = {}
    for path in folder.glob("*.zarr/*/c/*/**/*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            blocks.setdefault(int(name.split("/")[3]), {})[name] = path.stat().st_size
    return blocks


def rows_to_do(run: Path, block_rows: int) -> int:
    """Return how many examples an unfinished run still lacks, by its ledger."""
    return sum(
        min(block_rows, N_TEXTS - first)
        for number, first in enumerate(range(0, N_TEXTS, block_rows))
        if number not in {record["block"] for record in blocks_of(run)}
    )


@pytest.mark.parametrize("at", several(3, 30))
def test_a_killed_run_ends_as_one_that_was_left_alone(
    at: float, killed, begin, commands, whole: Path, wanted, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    when = killed(run, at)
    block_rows = json.loads((whole / "meta.json").read_text())["block_rows"]
    assert 10 * block_rows < N_TEXTS
    recorded, lost = {record["block"] for record in blocks_of(run)}, shards_of(partial_of(run))
    begun, there, named = partial_of(run) / "ledger.jsonl", run.exists(), (partial_of(run) / "meta.json").exists()
    to_do = N_TEXTS if there or named else rows_to_do(run, block_rows)
    was_begun = begun.is_file() and begun.stat().st_size > 0
    resumed: Ended = begin(run, "--resume").wait()
    if there:
        assert resumed.code == 1 and "already holds a run. Replace it with --overwrite" in resumed.said(), when
    elif not was_begun:
        assert resumed.code == 1 and "Leave --resume out to begin one" in resumed.said(), when
        assert begin(run).wait().code == 0, when
    else:
        assert resumed.code == 0, (when, resumed)
    assert not partial_of(run).exists(), when
    done = shards_of(run)
    assert len(lost.keys() - recorded) <= 2, when  # one that is being closed, and one that is being computed
    assert len([number for number in lost.keys() - recorded if lost[number] == done[number]]) <= 1, when
    assert json.loads((run / "meta.json").read_text())["timings"]["n_examples"] == to_do, when
    assert_same(content_of(run), wanted)
    checked = commands.run(INDEX, run, "--validate")
    assert checked.code == 0 and "checks hold" in checked.out, (when, checked)


@pytest.mark.parametrize("at", several(1, 10))
def test_killed_while_it_replaces_a_run_it_leaves_the_old_or_the_new(
    at: float, killed, begin, commands, wanted, tmp_path: Path, small: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small, run)
    before = files_of(run)
    when = killed(run, at, "--overwrite")
    if blocks_of(run):
        assert files_of(run) == before, when
    begun = partial_of(run).exists()
    left = [p.name for p in tmp_path.iterdir()] != ["run"]  # of the old one, which the next writer sweeps
    if begun or left or files_of(run) == before:  # it may have been killed before there was anything of the new one
        assert begin(run, "--overwrite", *(["--resume"] if blocks_of(run) else [])).wait().code == 0, when
    assert_same(content_of(run), wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["run"], when
    assert commands.run(INDEX, run, "--validate").code == 0, when


@pytest.mark.long
def test_killed_again_and_again_it_does_no_finished_block_twice(begin, wanted, tmp_path: Path) -> None:
    run, rng = tmp_path / "run", random.Random(SEED)
    known: dict[int, dict] = {}
    for turn in range(3):
        process, enough = begin(run, *(["--resume"] if known else [])), len(known) + 2
        until(lambda enough=enough: len(blocks_of(run)) >= enough)
        time.sleep(rng.random() / 20)
        process.signal(signal.SIGKILL)
        assert process.wait().code == -9
        now = {record["block"]: record for record in blocks_of(run)}
        assert len(now) == len(blocks_of(run)), turn
        assert {number: now[number] for number in known} == known, turn
        known = now
    assert begin(run, "--resume").wait().code == 0
    assert_same(content_of(run), wanted)
