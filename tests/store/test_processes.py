"""Shard files that helper processes write: the same bytes, errors that come back, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from decision_traces.errors import RunError
from decision_traces.extract.helpers import Helpers
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.pieces import Pieces
from decision_traces.store.writing.layout import RunLayout
from decision_traces.store.writing.processes import ShardProcess, WriterProcesses
from decision_traces.store.writing.shared_memory import SharedMemory

DIMS = Dims(5, 6, 4, 2, 3, 8, 6)
LAYOUT = RunLayout(tuple(arrays_for("dec", ("hidden",))), {"dec": DIMS}, "float16", 2)
ABOUT = (LAYOUT.shard_shape(LAYOUT.specs[0]), 2)

pytestmark = pytest.mark.skipif(not SharedMemory.available(), reason="this system has no memfd")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    shared = SharedMemory()
    yield shared
    shared.close()


@pytest.fixture
def process(memory: SharedMemory) -> Iterator[ShardProcess]:
    helper = ShardProcess(memory)
    yield helper
    helper.close()


def test_a_view_is_told_in_numbers_and_found_again(memory: SharedMemory) -> None:
    memory.room(64)
    whole = memory.room(4096).view(np.float16).reshape(4, 16, 32)
    whole[:] = np.arange(2048).reshape(whole.shape)
    view = whole[1, 2:7:2, 3:9]
    place = memory.place(view)
    assert (place.room, place.offset, place.shape) == (1, 2 * (512 + 64 + 3), (3, 6))
    np.testing.assert_array_equal(place.array(memory.rooms[1].memory), view)


def test_any_number_of_orders_may_be_given_before_it_is_waited_for(
    memory: SharedMemory, process: ShardProcess, tmp_path: Path
) -> None:
    numbers = memory.room(2 * 4 * 8 * 2).view(np.float16).reshape(2, 4, 8)
    numbers[:] = np.arange(64).reshape(numbers.shape)
    files = [tmp_path / str(n) for n in range(2000)]
    for file in files:  # a socket holds a few hundred answers
        file.touch()
        process.order("begin", file, *ABOUT)
        process.put(file, Pieces(numbers, (0, 1), (4, 4)))
    for file in files:
        process.order("close", file)
    process.finish()
    sizes = {file.stat().st_size for file in files}
    assert len(sizes) == 1 and sizes.pop() > 128


def test_memory_of_its_own_is_not_shared(memory: SharedMemory) -> None:
    memory.room(64)
    with pytest.raises(ValueError, match="shared memory"):
        memory.place(np.zeros(4))


def test_rooms_are_locked_and_given_back() -> None:
    told: list[tuple[str, int, int]] = []
    shared = SharedMemory(lambda a, n: told.append(("pin", a, n)), lambda a, n: told.append(("unpin", a, n)))
    address = shared.room(100).ctypes.data
    shared.close()
    assert told == [("pin", address, 100), ("unpin", address, 100)]


@pytest.fixture
def with_helpers(monkeypatch: pytest.MonkeyPatch) -> list[Helpers]:
    """Let the engine write through two processes, as it does for a GPU; what it was given is kept."""
    given: list[Helpers] = []

    def of(_device: torch.device) -> Helpers:
        given.append(Helpers(WriterProcesses(2)))
        return given[-1]

    monkeypatch.setattr(Helpers, "of", of)
    return given


def files_of(run: Path) -> dict[str, bytes]:
    arrays = [p for p in run.rglob("*") if p.is_file() and ".zarr" in str(p)]
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in arrays}


@pytest.mark.parametrize("positions", ["all", "next"])
def test_a_run_has_the_same_bytes(positions, tiny_folder, tmp_path, blocks_of, request) -> None:
    blocks_of(7)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join("abcdefghij"[: 1 + i % 10] * (1 + i % 4) for i in range(17)))
    capture = ("attn", "qkv", "hidden", "resid")
    runs = []
    for name in ("alone", "helped"):
        helped = [] if name == "alone" else request.getfixturevalue("with_helpers")
        config = NextTokenConfig(
            model_path=tiny_folder("llama"), text_file=texts, out_dir=tmp_path / name, capture=capture,
            positions=positions,
        )  # fmt: skip
        runs.append(files_of(extract_next_token(config)))
        assert all(p._process.returncode == 0 for h in helped for p in h.processes.processes)
    assert len(runs[0]) > 20 and runs[0] == runs[1]


def test_what_it_cannot_write_is_raised_here(process: ShardProcess, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (Path("a\0b"), tmp_path / "a"):
        process.order("begin", path, *ABOUT)
        process.order("close", path)
    with pytest.raises(ValueError, match="embedded null byte"):
        process.finish()
    assert process.finish() is None  # told once
    assert (tmp_path / "a").stat().st_size > 0


def test_one_that_was_killed_is_a_sentence(process: ShardProcess, tmp_path: Path) -> None:
    process.order("begin", tmp_path / "a", *ABOUT)
    process.finish()
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="has ended"):
        for _ in range(2):  # it may be gone before or after the order is sent
            process.order("close", tmp_path / "a")
            process.finish()


def test_it_ends_with_whoever_started_it() -> None:
    script = (
        "import os, signal\n"
        "from decision_traces.store.writing.processes import ShardProcess\n"
        "from decision_traces.store.writing.shared_memory import SharedMemory\n"
        "print(ShardProcess(SharedMemory())._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the helper outlives who started it"
        time.sleep(0.05)
