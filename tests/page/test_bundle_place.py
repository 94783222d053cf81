"""A bundle replaces a bundle and nothing else, all of it or nothing."""

import json
import shutil
from pathlib import Path

import pytest

from decision_traces.errors import RunError, RunExistsError
from decision_traces.folders.lock import FolderLock
from decision_traces.page import bundle
from decision_traces.page.bundle import write_bundle


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(path: Path, text: str = "years of work") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def made(demo_run: Path, tmp_path_factory) -> Path:
    """A bundle; tests copy it."""
    folder = tmp_path_factory.mktemp("bundle") / "site"
    write_bundle([demo_run], folder, limit=1)
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "place" / "site"))


def test_its_list_has_every_file(made: Path) -> None:
    listed = json.loads((made / "bundle.json").read_text())["files"]
    assert {name: len(raw) for name, raw in tree(made).items() if name != "bundle.json"} == listed


def test_what_the_user_has_put_into_the_site_is_named_and_stays(demo_run: Path, site: Path) -> None:
    put(site / "CNAME", "example.org")
    put(site / "blog" / "first.html")
    before = tree(site.parent)
    with pytest.raises(RunExistsError, match=r"no record .* \(CNAME, blog/first.html\): your own, .*\. Move them away"):
        write_bundle([demo_run], site, limit=1, overwrite=True)
    assert tree(site.parent) == before


@pytest.mark.parametrize("mark", ["ledger.jsonl", "finetune_plan.json"])
def test_what_stands_where_it_would_be_built_stays(mark: str, demo_run: Path, tmp_path: Path) -> None:
    put(tmp_path / ".site.partial" / mark, '{"made_by": "decision-traces", "plan": {}}\n')
    before = tree(tmp_path)
    with pytest.raises(RunExistsError, match=r"\.site\.partial .*nothing proves"):
        write_bundle([demo_run], tmp_path / "site", limit=1, overwrite=True)
    assert tree(tmp_path) == before


def test_some_site_with_such_files_is_no_bundle(demo_run: Path, tmp_path: Path) -> None:
    put(tmp_path / "site" / "index.html")
    put(tmp_path / "site" / "api" / "runs.json")
    put(tmp_path / "site" / "bundle.json", "{}")
    before = tree(tmp_path)
    with pytest.raises(RunExistsError, match="is not proved to be a bundle"):
        write_bundle([demo_run], tmp_path / "site", limit=1, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("file", [0, 3, 9])
def test_a_failing_disk_is_a_sentence_and_the_old_bundle_stays(
    file: int, error: OSError, demo_run: Path, site: Path, monkeypatch
) -> None:
    before, put_file, written = tree(site.parent), bundle._put, []

    def fail(path: Path, found) -> None:
        written.append(path)
        if len(written) > file:
            raise error
        put_file(path, found)

    monkeypatch.setattr(bundle, "_put", fail)
    with pytest.raises(RunError, match=r"site cannot be written: Input|disk of .*site is full\. Nothing was changed"):
        write_bundle([demo_run], site, limit=1, overwrite=True)
    assert tree(site.parent) == before and [path.name for path in site.parent.iterdir()] == ["site"]


def test_ctrl_c_leaves_the_old_bundle(demo_run: Path, site: Path, monkeypatch) -> None:
    def stop(*_) -> None:
        raise KeyboardInterrupt

    before = tree(site.parent)
    monkeypatch.setattr(bundle, "_put", stop)
    with pytest.raises(KeyboardInterrupt):
        write_bundle([demo_run], site, limit=1, overwrite=True)
    assert tree(site.parent) == before and [path.name for path in site.parent.iterdir()] == ["site"]


def test_one_that_was_killed_is_in_nobodys_way(demo_run: Path, made: Path, site: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bundle.FolderPlace, "finish", lambda _: 1 / 0)
        patch.setattr(bundle.FolderPlace, "discard", lambda _: None)  # as it were if it had been killed
        with pytest.raises(ZeroDivisionError):
            write_bundle([demo_run], site, limit=1, overwrite=True)
    assert (site.parent / ".site.partial" / "bundle.json").is_file()
    write_bundle([demo_run], site, limit=1, overwrite=True)
    assert tree(site) == tree(made) and [path.name for path in site.parent.iterdir()] == ["site"]


def test_through_a_link_the_real_folder_is_replaced_by_one_writer(demo_run: Path, site: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(site)
    with FolderLock(site), pytest.raises(RunExistsError, match="is being written by another process"):
        write_bundle([demo_run], tmp_path / "link", limit=1, overwrite=True)
    write_bundle([demo_run], tmp_path / "link", limit=1, overwrite=True)
    assert (tmp_path / "link").is_symlink() and (site / "index.html").is_file()
