"""Shared by the tests of faults: commands to kill, a run that was left alone, small file systems, runs to damage."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.processes import NEXTTOK, Commands, Process, until
from faults.runs import CAPTURE, N_TEXTS, Content, content_of, texts

from decision_traces.extract.next_token import NextTokenConfig


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Start commands as processes of their own."""
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of texts that make many blocks with `--block_mb 1`."""
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("".join(f"{text}\n" for text in texts(N_TEXTS)))
    return path


@pytest.fixture(scope="session")
def flags(tiny_folder, lines: Path) -> tuple[object, ...]:
    """The flags of the command that is killed, stopped and starved here, but for `--out_dir`."""
    return ("--model_path", tiny_folder("gpt2"), "--text_file", lines, "--block_mb", 1, "--capture", *CAPTURE)


@pytest.fixture
def begin(commands: Commands, flags) -> Callable[..., Process]:
    """Start the command for a run."""
    return lambda run, *more, **how: commands.start(NEXTTOK, *flags, "--out_dir", run, *more, **how)


@pytest.fixture(scope="session")
def alone(commands: Commands, flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run of a command that was left alone, and how many seconds it took to get its name."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert commands.run(NEXTTOK, *flags, "--limit", 1, "--out_dir", run.with_name("warm")).code == 0
    began = time.monotonic()
    process = commands.start(NEXTTOK, *flags, "--out_dir", run)
    until(run.exists)
    seconds = time.monotonic() - began
    assert process.wait().code == 0
    return run, seconds


@pytest.fixture(scope="session")
def whole(alone: tuple[Path, float]) -> Path:
    """The run of a command that was left alone."""
    return alone[0]


@pytest.fixture(scope="session")
def seconds(alone: tuple[Path, float]) -> float:
    """How long it took."""
    return alone[1]


@pytest.fixture(scope="session")
def small(alone: tuple[Path, float]) -> Path:
    """A complete run of one example."""
    return alone[0].with_name("warm")


@pytest.fixture(scope="session")
def wanted(whole: Path) -> Content:
    """What stands in it."""
    return content_of(whole)


@pytest.fixture
def config(tiny_folder, lines: Path, tmp_path: Path) -> Callable[..., NextTokenConfig]:
    """The same command for the library, with fewer texts."""

    def make(**options) -> NextTokenConfig:
        settings = {"model_path": tiny_folder("gpt2"), "text_file": lines, "capture": CAPTURE, "block_mb": 1}
        return NextTokenConfig(model="tiny", **{**settings, "limit": 60, "out_dir": tmp_path / "run", **options})

    return make


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a real small file system, where the machine lets us."""
    folders: list[Path] = []

    def mount(kind: str, options: str, source: str) -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", kind, "-o", options, source, str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no right to mount a small file system here ({done.stderr.strip()})")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tmpfs(mounted) -> Callable[[str], Path]:
    """Mount memory as a disk."""
    return lambda options: mounted("tmpfs", options, "tmpfs")


@pytest.fixture
def ext4(mounted, tmp_path: Path) -> Callable[[int], Path]:
    """Mount a file of so many megabytes as a disk: one with direct writes, as most are."""

    def make(megabytes: int) -> Path:
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("no mkfs.ext4 here")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        return mounted("ext4", "loop", str(image))

    return make
