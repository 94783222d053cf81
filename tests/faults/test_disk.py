"""Disks that fill up at any step, are read-only, no folder at all, or taken away while they are written."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.processes import blocks_of, files_of, partial_of, until
from faults.runs import assert_same, content_of

from decision_traces.errors import DiskSpaceError, Interrupted, RunError
from decision_traces.extract import run
from decision_traces.extract.next_token import extract_next_token
from decision_traces.extract.progress import Silent
from decision_traces.store.shards.appender import Appender
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.store.writing import writer

PAGE = 4096


class AtTheEnd(Silent):
    """A watcher that does something when the last block is on disk, before the tables are joined."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def finish(self) -> None:
        self._do()


def leave_room(disk: Path, pages: int) -> None:
    """Let a tmpfs have this much room and no more."""
    status = os.statvfs(disk)
    size = (status.f_blocks - status.f_bfree) * status.f_frsize + pages * PAGE
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


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
    resumed = extract_next_token(config(out_dir=disk / "run", resume=True))
    assert_same(content_of(resumed), content_of(extract_next_token(config(out_dir=tmp_path / "whole"))))


def test_a_device_that_fills_up_under_direct_writes(config, ext4, monkeypatch, tmp_path: Path) -> None:
    disk, written = ext4(32), []
    write = Appender._write
    monkeypatch.setattr(Appender, "_write", lambda self, *args: (written.append(self.direct), write(self, *args)))
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**19)
    with monkeypatch.context() as patch:
        patch.setattr(run, "free_bytes", lambda _folder: 1 << 40)
        with pytest.raises(DiskSpaceError, match=r"The disk of .*\.run\.partial is full.*--resume"):
            extract_next_token(config(out_dir=disk / "run"))
    assert written and all(written)
    ballast.unlink()
    resumed = extract_next_token(config(out_dir=disk / "run", resume=True))
    assert_same(content_of(resumed), content_of(extract_next_token(config(out_dir=tmp_path / "whole"))))


def stage(folder: Path) -> str:
    """Return which of the last three files a run could not be given."""
    try:
        pq.read_table(folder / "tokens.parquet")
        json.loads((folder / "manifest.json").read_text())
    except (OSError, pa.ArrowInvalid) as error:
        return "manifest" if "manifest" in str(error) else "tables"
    return "meta"


def test_a_disk_full_at_any_step_of_the_end_keeps_all_blocks_and_the_old_run(config, tmpfs, tmp_path: Path) -> None:
    disk, few = tmpfs("size=64m"), {"limit": 12, "capture": ("hidden",)}
    target = disk / "run"
    extract_next_token(config(out_dir=target, limit=1))
    before = files_of(target)
    stages: list[str] = []
    watcher = AtTheEnd(lambda: leave_room(disk, 0))
    while True:
        try:
            extract_next_token(config(out_dir=target, overwrite=True, resume=bool(stages), **few), watcher)
        except DiskSpaceError as error:
            assert f"The disk of {partial_of(target)} is full" in str(error) and "--resume" in str(error)
        else:
            break
        assert files_of(target) == before
        assert len(blocks_of(target)) == 1
        stages.append(stage(partial_of(target)))
        leave_room(disk, len(stages))
        watcher = Silent()
        assert len(stages) < 30
    # A page more at a time: where what is written before takes one for a while, the manifest has its room at once; the
    # next test takes it away.
    assert [s for s in dict.fromkeys(stages) if s != "manifest"] == ["tables", "meta"]
    assert_same(content_of(target), content_of(extract_next_token(config(out_dir=tmp_path / "whole", **few))))
    assert failures(validate_run(target)) == []
    assert [p.name for p in disk.iterdir()] == ["run"]


@pytest.mark.parametrize(("write", "missing"), [("write_manifest", "manifest"), ("write_meta", "meta")])
def test_a_disk_full_at_one_of_the_last_files_keeps_all_blocks_and_the_old_run(
    write: str, missing: str, config, tmpfs, monkeypatch, tmp_path: Path
) -> None:
    """Filled at that instant: what is written before takes more room for a while, which the manifest would have."""
    disk, few = tmpfs("size=64m"), {"limit": 12, "capture": ("hidden",)}
    target = disk / "run"
    extract_next_token(config(out_dir=target, limit=1))
    before, written = files_of(target), getattr(writer, write)

    def full(folder: Path, *content: object) -> object:
        leave_room(disk, 0)
        return written(folder, *content)

    with monkeypatch.context() as patch, pytest.raises(DiskSpaceError, match=r"\.run\.partial is full.*--resume"):
        patch.setattr(writer, write, full)
        extract_next_token(config(out_dir=target, overwrite=True, **few))
    assert files_of(target) == before
    assert (stage(partial_of(target)), len(blocks_of(target))) == (missing, 1)
    leave_room(disk, 1000)
    extract_next_token(config(out_dir=target, overwrite=True, resume=True, **few))
    assert_same(content_of(target), content_of(extract_next_token(config(out_dir=tmp_path / "whole", **few))))
    assert [p.name for p in disk.iterdir()] == ["run"]


def test_a_disk_without_room_for_another_file_is_full(config, tmpfs) -> None:
    disk = tmpfs("size=64m,nr_inodes=12")
    with pytest.raises(DiskSpaceError, match=r"The disk of .*disk0 is full\. Nothing was written.*--out_dir"):
        extract_next_token(config(out_dir=disk / "run"))
    assert list(disk.iterdir()) == []


def test_a_read_only_folder_is_said(config, tmpfs) -> None:
    disk = tmpfs("size=8m,ro")
    with pytest.raises(RunError, match=r"cannot be written: .*disk0 is a read-only folder"):
        extract_next_token(config(out_dir=disk / "run"))


def test_a_file_in_the_way_is_said(config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: .*file is a file"):
        extract_next_token(config(out_dir=tmp_path / "file" / "run"))


# -- taken away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [False, True], ids=["the unfinished run", "the folder it lies in"])
def test_a_folder_that_is_removed_while_it_is_written_is_said(above: bool, begin, wanted, tmp_path: Path) -> None:
    target = tmp_path / "traces" / "run"
    process = begin(target)
    until(lambda: len(blocks_of(target)) > 2)
    with process.frozen():
        shutil.rmtree(target.parent if above else partial_of(target))
    ended = process.wait()
    assert ended.code == 1
    assert ended.said() == (
        f"error: {partial_of(target)} is gone: it was removed or renamed while it was being written. "
        "Run the command again."
    )
    assert not target.exists()
    assert begin(target).wait().code == 0
    assert_same(content_of(target), wanted)


def test_a_folder_that_is_removed_before_the_tables_are_joined_is_said(config, tmp_path: Path) -> None:
    unfinished = partial_of(tmp_path / "run")
    with pytest.raises(RunError, match=r"\.run\.partial is gone: .*Run the command again"):
        extract_next_token(config(limit=7), AtTheEnd(lambda: shutil.rmtree(unfinished)))
    assert list(tmp_path.iterdir()) == []


def test_another_folder_in_its_place_is_not_taken_for_it(config, tmp_path: Path) -> None:
    unfinished = partial_of(tmp_path / "run")

    def replace() -> None:
        shutil.rmtree(unfinished)
        unfinished.mkdir()

    with pytest.raises(RunError, match=r"\.run\.partial"):
        extract_next_token(config(limit=7), AtTheEnd(replace))
    assert not (tmp_path / "run").exists()


def test_a_finished_block_of_which_a_file_was_lost_or_changed_is_done_again(config, tmp_path: Path) -> None:
    target, unfinished = tmp_path / "run", partial_of(tmp_path / "run")
    whole = extract_next_token(config(out_dir=tmp_path / "whole", limit=28))
    with pytest.raises(Interrupted, match="28 of 28 examples are kept"):
        extract_next_token(config(limit=28), AtTheEnd(press_ctrl_c))
    assert len(blocks_of(target)) == 4
    (unfinished / "dec_hidden.zarr/h/c/0/1/0/0").unlink()
    flip(unfinished / "dec_self_qkv.zarr/q/c/1/2/0/0/0", 1000)
    part = next((unfinished / "parts").glob("000002-*"))
    part.write_bytes(part.read_bytes()[:-1])
    resumed = extract_next_token(config(limit=28, resume=True))
    assert_same(content_of(resumed), content_of(whole))
    assert json.loads((resumed / "meta.json").read_text())["timings"]["n_examples"] == 21
    assert failures(validate_run(resumed)) == []


def press_ctrl_c() -> None:
    raise KeyboardInterrupt


def flip(path: Path, place: int) -> None:
    """Change one bit of a file in place."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)
