"""Disks that are full, read-only or no folder at all: real small file systems where the machine lets us mount them."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from decision_traces import TraceStore
from decision_traces.errors import DiskSpaceError, RunError
from decision_traces.extract import run
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

CAPTURE = ("attn", "qkv", "hidden", "resid")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no right to mount a small file system here ({done.stderr.strip()})")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def config(tiny_folder, tmp_path: Path) -> Callable[..., NextTokenConfig]:
    texts = tmp_path / "lines.txt"
    texts.write_text("".join(f"{'a longer line of text ' * 3}{i}\n" for i in range(60)))

    def make(**options) -> NextTokenConfig:
        settings = {"model_path": tiny_folder("gpt2"), "text_file": texts, "capture": CAPTURE, "block_mb": 1, **options}
        return NextTokenConfig(model="tiny", **settings)

    return make


def test_a_disk_that_is_too_small_is_found_out_before_the_first_pass(config, tmpfs) -> None:
    disk = tmpfs("size=1m")
    with pytest.raises(DiskSpaceError, match=r"may take 0\.\d\d GB and .* has 0\.00 GB free.*--out_dir"):
        extract_next_token(config(out_dir=disk / "run"))
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_finished_blocks_and_no_run(config, tmpfs, monkeypatch, tmp_path: Path) -> None:
    disk = tmpfs("size=1m")
    with monkeypatch.context() as patch:
        patch.setattr(run, "free_bytes", lambda _folder: 1 << 40)
        with pytest.raises(DiskSpaceError, match=r"The disk of .*\.run\.partial is full.*--resume"):
            extract_next_token(config(out_dir=disk / "run"))
    assert [p.name for p in disk.iterdir()] == [".run.partial"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    resumed = TraceStore(extract_next_token(config(out_dir=disk / "run", resume=True)))
    whole = TraceStore(extract_next_token(config(out_dir=tmp_path / "whole")))
    for name in whole.arrays():
        assert (resumed.to_xarray(name).to_numpy() == whole.to_xarray(name).to_numpy()).all()


def test_a_read_only_folder_is_said(config, tmpfs) -> None:
    disk = tmpfs("size=8m,ro")
    with pytest.raises(RunError, match=r"cannot be written: .*disk0 is a read-only folder"):
        extract_next_token(config(out_dir=disk / "run"))


def test_a_file_in_the_way_is_said(config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: .*file is a file"):
        extract_next_token(config(out_dir=tmp_path / "file" / "run"))
