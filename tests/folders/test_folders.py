"""Folders exchanged, locked, removed and read: what other tests of faults rest on."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from decision_traces.errors import DamagedRunError, RunExistsError
from decision_traces.folders import exchange
from decision_traces.folders.exchange import leftovers, put_back, put_in_place, staging_folder
from decision_traces.folders.lock import FolderLock
from decision_traces.folders.plain import new_file, open_plain
from decision_traces.folders.removal import refuse_strangers, remove


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_swap", lambda: None)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_new_folder_has_the_name_and_the_old_one_is_put_aside(tmp_path, monkeypatch, at_once):
    if not at_once:
        no_exchange(monkeypatch)
    target = folder(tmp_path / "run", a="old")
    new = staging_folder(target)
    (new / "a").write_text("new")
    aside = put_in_place(new, target)
    assert aside is not None and (target / "a").read_text() == "new" and (aside / "a").read_text() == "old"
    assert leftovers(target) == [aside] and sorted(tmp_path.iterdir()) == sorted([target, aside])


def test_a_name_is_never_without_a_folder_while_two_are_exchanged(tmp_path):
    target, missing, done = folder(tmp_path / "run", a=""), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not os.path.isfile(target / "a"):  # noqa: PTH113 - one system call, as fast as can be
                missing.append(1)

    watching = threading.Thread(target=look)
    watching.start()
    for _ in range(300):
        new = staging_folder(target)
        (new / "a").write_text("")
        remove(put_in_place(new, target), ["a"])
    done.set()
    watching.join()
    if exchange._swap() is None:
        pytest.skip("this system cannot exchange two names at once")
    assert missing == [] and sorted(tmp_path.iterdir()) == [target]


def test_a_kill_between_two_renames_is_mended_when_the_folder_is_looked_for(tmp_path, monkeypatch):
    no_exchange(monkeypatch)
    monkeypatch.setattr(exchange, "_WAIT_S", 0.0)
    target = folder(tmp_path / "run", a="old")
    new, renames = staging_folder(target), []

    def killed_at_the_second(self: Path, other: Path) -> Path:
        renames.append(other)
        if len(renames) > 1:
            raise SystemExit  # and what would put it back does not run either
        os.rename(self, other)  # noqa: PTH104 - the method itself is replaced here
        return other

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "rename", killed_at_the_second)
        put_in_place(new, target)
    assert not target.exists()
    assert not put_back(target, lambda path: False)
    assert put_back(target, lambda path: (path / "a").is_file())
    assert (target / "a").read_text() == "old"


def test_a_second_writer_is_refused_and_the_lock_leaves_nothing(tmp_path):
    target = tmp_path / "run"
    with FolderLock(target):
        code = (
            "import sys; from pathlib import Path; from decision_traces.folders.lock import FolderLock\n"
            "FolderLock(Path(sys.argv[1])).take()"
        )
        other = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
        assert "is being written by another process now" in other.stderr
        with pytest.raises(RunExistsError, match="written by another process"):
            FolderLock(target).take()
    with FolderLock(target):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_link_is_that_of_what_it_leads_to(tmp_path):
    real = folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with FolderLock(tmp_path / "link"), pytest.raises(RunExistsError, match="real is being written"):
        FolderLock(real).take()


def test_what_is_not_ours_stays_and_is_named(tmp_path):
    run = folder(tmp_path / "run", meta="1", thesis="2")
    folder(run / "notes", n="3")
    (run / "link").symlink_to(tmp_path)
    with pytest.raises(RunExistsError, match=r"--overwrite: .*\(link, thesis, notes/n\)"):
        refuse_strangers(run, {"meta"}, "--overwrite")
    assert remove(run, {"meta"}) == ["link", "thesis", "notes/n"]
    assert remove(run, {"link", "thesis", "notes/n"}) == []
    assert list(tmp_path.iterdir()) == []


def test_only_files_of_the_folder_itself_are_opened(tmp_path):
    run, home = folder(tmp_path / "run", plain="1"), folder(tmp_path / "home", secret="2")
    (run / "link").symlink_to(home / "secret")
    (run / "through").symlink_to(home)
    os.mkfifo(run / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(run / "socket"))
    for name, kind in {"link": "link", "through/secret": "link", "pipe": "pipe", "socket": "socket"}.items():
        with pytest.raises(DamagedRunError, match=f"is a .*{kind}"):
            open_plain(run, run / name)
    with open_plain(run, run / "plain") as file:
        assert file.read() == b"1"
    with pytest.raises(FileNotFoundError):
        open_plain(run, run / "nothing")


def test_a_file_is_written_whole_or_not_and_never_through_a_link(tmp_path):
    home = folder(tmp_path / "home", bashrc="mine")
    (tmp_path / "index").symlink_to(home / "bashrc")
    (tmp_path / ".index.partial").symlink_to(home / "bashrc")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "index") as file:
        file.write(b"half")
        raise ZeroDivisionError
    with new_file(tmp_path / "index") as file:
        file.write(b"whole")
    assert (home / "bashrc").read_text() == "mine" and (tmp_path / "index").read_bytes() == b"whole"
    assert not (tmp_path / "index").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".index.partial", "home", "index"]
