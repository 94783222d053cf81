"""Appending past the page cache: the same bytes whatever the sizes, and the cache where disk or system are not fit."""

import errno
import os
import random
from io import FileIO
from pathlib import Path

import pytest

from decision_traces.store.shards import appender as module
from decision_traces.store.shards.appender import PAGE, Appender

WINDOW = 2 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


def numbers(n: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n)


def writes(monkeypatch: pytest.MonkeyPatch, write) -> None:
    """Let files of the appender be written by `write(file, data)`."""

    class Spy(FileIO):
        def write(self, data) -> int:
            return write(super().write, data)

    monkeypatch.setattr(module, "FileIO", Spy)


@pytest.mark.parametrize("flag", [0, getattr(os, "O_DIRECT", 0)])
@pytest.mark.parametrize(
    "sizes",
    [
        [[]],
        [[0, 1], [PAGE - 1], [1]],
        [[PAGE], [], [PAGE, PAGE + 1]],
        [[WINDOW - 1, 2], [WINDOW]],
        [[5], [3 * WINDOW + 7, 11], [1, 2, 3], [WINDOW - 26]],
    ],
)
def test_what_is_appended_is_there(file: Path, sizes: list[list[int]], flag: int, monkeypatch) -> None:
    monkeypatch.setattr(module.os, "O_DIRECT", flag, raising=False)
    appender, rest, whole, seed = Appender(), b"", b"", 0
    assert appender.direct == bool(flag)
    for call in sizes:
        frames = [[numbers(size, seed := seed + 1), memoryview(b"between")] for size in call]
        whole += b"".join(bytes(part) for frame in frames for part in frame)
        rest = appender.append(file, rest, iter(frames))
        assert len(rest) == len(whole) % PAGE
        assert file.read_bytes() + rest == whole
    appender.finish(file, rest)
    assert file.read_bytes() == whole


def test_two_files_take_turns(tmp_path: Path) -> None:
    appender = Appender()
    files = [tmp_path / "a", tmp_path / "b"]
    rests = [b"", b""]
    for file in files:
        file.touch()
    for turn in range(6):
        rests = [
            appender.append(f, r, [[numbers(9000, turn + 10 * n)]])
            for n, (f, r) in enumerate(zip(files, rests, strict=True))
        ]
    for n, (file, rest) in enumerate(zip(files, rests, strict=True)):
        appender.finish(file, rest)
        assert file.read_bytes() == b"".join(numbers(9000, turn + 10 * n) for turn in range(6))


def test_a_frame_is_used_up_before_the_next_is_made(file: Path) -> None:
    room = bytearray(PAGE)

    def frames():
        for value in (1, 2, 3):
            room[:] = bytes([value]) * PAGE
            yield [memoryview(room)]

    assert Appender().append(file, b"", frames()) == b""
    assert file.read_bytes() == b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE


def test_a_device_may_take_less_at_a_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def write(real, data) -> int:
        taken.append(len(data))
        return real(data[:PAGE])

    writes(monkeypatch, write)
    whole = numbers(3 * PAGE)
    assert Appender().append(file, b"", [[whole]]) == b""
    assert (taken, file.read_bytes()) == ([3 * PAGE, 2 * PAGE, PAGE], whole)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
class TestWhereTheCacheIsBetter:
    def test_a_file_system_without_direct_writes(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real, asked = os.open, []

        def opened(path, flags: int, *more) -> int:
            asked.append(bool(flags & os.O_DIRECT))
            if asked[-1]:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(path, flags, *more)

        monkeypatch.setattr(module.os, "open", opened)
        appender = Appender()
        rest = b""
        for _ in range(2):
            rest = appender.append(file, rest, [[numbers(PAGE)]])
        assert file.read_bytes() == 2 * numbers(PAGE)
        assert (asked, appender.direct) == ([True, False, False], False)

    def test_a_device_with_larger_pages(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []

        def write(real, data) -> int:
            sizes.append(len(data))
            if len(sizes) == 2:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(data)

        writes(monkeypatch, write)
        appender = Appender()
        whole = numbers(WINDOW + 2 * PAGE)
        assert appender.append(file, b"", [[whole]]) == b""
        assert (sizes, appender.direct) == ([WINDOW, 2 * PAGE, 2 * PAGE], False)
        assert file.read_bytes() == whole

    @pytest.mark.parametrize(
        ("rate", "sharing", "direct"), [(210e6, 1, True), (190e6, 1, False), (26e6, 8, True), (24e6, 8, False)]
    )
    def test_a_disk_is_judged_by_64_mib(self, file: Path, monkeypatch, rate: float, sharing: int, direct: bool) -> None:
        clock = iter(range(1000))
        monkeypatch.setattr(module, "perf_counter", lambda: next(clock) * WINDOW / rate)
        appender = Appender(sharing)
        for _ in range(31):
            appender.append(file, b"", [[bytes(WINDOW)]])
        assert appender.direct
        appender.append(file, b"", [[bytes(WINDOW)]])
        assert appender.direct == direct
        appender.append(file, b"", [[numbers(WINDOW)]])
        assert file.stat().st_size == 33 * WINDOW and file.read_bytes()[-WINDOW:] == numbers(WINDOW)

    def test_a_slow_disk_is_judged_anew_after_a_while(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(1000))
        monkeypatch.setattr(module, "perf_counter", lambda: float(next(clock)))
        monkeypatch.setattr(module, "_STRETCH", 2 * PAGE)
        monkeypatch.setattr(module, "_PAUSE", 3 * PAGE)
        appender, found = Appender(), []
        for _ in range(8):
            found.append(appender.direct)
            appender.append(file, b"", [[numbers(PAGE)]])
        assert found == [True, True, False, False, False, True, True, False]
        assert file.read_bytes() == 8 * numbers(PAGE)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
    def test_other_errors_stay_errors(self, file: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def write(real, data) -> int:
            raise OSError(number, os.strerror(number))

        writes(monkeypatch, write)
        appender = Appender()
        with pytest.raises(OSError, match=os.strerror(number)):
            appender.append(file, b"", [[numbers(PAGE)]])
        assert appender.direct


def test_a_file_that_was_removed_is_not_made_anew(file: Path) -> None:
    file.unlink()
    appender = Appender()
    with pytest.raises(FileNotFoundError):
        appender.append(file, b"", [[numbers(PAGE)]])
    with pytest.raises(FileNotFoundError):
        appender.finish(file, b"end")
    assert not file.exists()
