"""A run from a stranger: what stands in place of a file is neither read nor written through, and nothing hangs."""

import json
import os
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crc32c import crc32c
from support.runs import TinyRun, build_run, copy_run

from decision_traces import TraceStore
from decision_traces.errors import TraceError
from decision_traces.store.files.runs import list_runs
from decision_traces.store.validate.index import index_run
from decision_traces.store.validate.run import failures, validate_run

SHARD = "dec_self_attn.zarr/attn/c/0/1/0/0/0"
FILES = ("meta.json", "manifest.json", "tokens.parquet", SHARD, "dec_self_attn.zarr/attn/zarr.json")
PATIENCE_S = 5


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = TinyRun(lengths=(3, 2), n_layers=2, n_heads=2, n_kv_heads=1, n_positions=3, d_head=2, d_model=3, links=False)
    folder = tmp_path_factory.mktemp("built") / "run"
    build_run(folder, run)
    assert failures(validate_run(folder)) == []
    return folder


@pytest.fixture
def run(built: Path, tmp_path: Path) -> Path:
    return copy_run(built, tmp_path / "run")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's own, outside the run; it must be the same afterwards."""
    path = tmp_path / "home" / ".bashrc"
    path.parent.mkdir()
    path.write_text("mine")
    return path


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Turn what hangs into a failure."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)


def pipe(path: Path, secret: Path) -> str:
    os.mkfifo(path)
    return "a pipe"


def endpoint(path: Path, secret: Path) -> str:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)
    return "a socket"


def link_to(target: str) -> Callable[[Path, Path], str]:
    def make(path: Path, secret: Path) -> str:
        path.symlink_to(target.format(secret=secret, itself=path))
        return "a symbolic link"

    make.__name__ = f"link-{target}"
    return make


KINDS = (pipe, endpoint, link_to("{secret}"), link_to("/dev/zero"), link_to("{itself}"))
PLACES = [
    pytest.param(file, put, id=f"{Path(file).name}-{put.__name__}")
    for file in FILES
    for put in (KINDS if file in {"meta.json", SHARD} else (pipe, link_to("/dev/zero")))
]


def read_all(run: Path) -> None:
    store = TraceStore(run)
    store.tokens.shape  # noqa: B018 - read for its errors
    for name in store.stored():
        array = store.array(name)
        array.read_box(array.box())


@pytest.mark.parametrize(("file", "put"), PLACES)
def test_what_is_no_file_is_named_and_neither_read_nor_waited_for(run, secret, file, put):
    (run / file).unlink()
    kind = put(run / file, secret)
    with pytest.raises(TraceError, match=kind):
        read_all(run)
    assert next(r.detail for r in failures(validate_run(run)) if r.where == file).startswith(kind)
    assert [summary.run_id for summary in list_runs(run.parent)] == ["run"]
    assert secret.read_text() == "mine"


@pytest.mark.parametrize("file", FILES)
def test_the_right_bytes_behind_a_link_are_refused_as_well(run, secret, file):
    outside = secret.with_name("bytes")
    (run / file).rename(outside)
    (run / file).symlink_to(outside)
    with pytest.raises(TraceError, match=r"is a symbolic link.*cp -rL"):
        read_all(run)


@pytest.mark.parametrize("folder", ["dec_self_attn.zarr", "dec_self_attn.zarr/attn", "dec_self_attn.zarr/attn/c/0"])
def test_no_folder_on_the_way_may_be_a_link(run, tmp_path, folder):
    (run / folder).rename(tmp_path / "elsewhere")
    (run / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TraceError, match=f"{Path(folder).name} is a symbolic link"):
        TraceStore(run).attn(0)
    assert folder in {r.where for r in failures(validate_run(run))}
    assert not any("elsewhere" in r.where for r in validate_run(run))


def test_the_folder_of_a_run_may_be_reached_through_a_link(run, tmp_path):
    (tmp_path / "shortcut").symlink_to(run)
    read_all(tmp_path / "shortcut")
    assert index_run(tmp_path / "shortcut", validate=True).valid


def test_other_things_in_a_run_go_on_being_readable(run, secret):
    (run / SHARD).unlink()
    (run / SHARD).symlink_to(secret)
    store = TraceStore(run)
    store.attn(0, layer=0)
    store.resid(0, stage="post_mlp")
    with pytest.raises(TraceError, match="is a symbolic link"):
        store.attn(0, layer=1)


@pytest.mark.parametrize("name", [".index.json.partial", "index.json"])
def test_indexing_writes_through_no_link_of_a_run_that_came_in_an_archive(run, secret, tmp_path, name):
    (run / name).symlink_to("../home/.bashrc")
    with tarfile.open(tmp_path / "run.tar", "w") as archive:
        archive.add(run, "run")
    with tarfile.open(tmp_path / "run.tar") as archive:
        archive.extractall(tmp_path / "received", filter="fully_trusted")
    (tmp_path / "received" / "home").mkdir()
    secret.rename(theirs := tmp_path / "received" / "home" / ".bashrc")
    index = index_run(tmp_path / "received" / "run", validate=True)
    assert theirs.read_text() == "mine"
    assert index.valid is False and next(c.where for c in index.checks if "link" in c.detail) == name
    assert not (tmp_path / "received" / "run" / "index.json").is_symlink()


def test_a_manifest_that_lists_files_outside_the_run_reads_none_of_them(run, secret):
    for outside in ("../home/.bashrc", str(secret)):
        manifest = (run / "manifest.json").read_bytes().replace(b'"tokens.parquet"', f'"{outside}"'.encode())
        (run / "manifest.json").write_bytes(manifest)
        meta = json.loads((run / "meta.json").read_text())
        (run / "meta.json").write_text(json.dumps(meta | {"manifest_crc32c": f"{crc32c(manifest):08x}"}))
        detail = [r.detail for r in failures(validate_run(run)) if "bashrc" in r.where]
        assert len(detail) == 1 and "does not lie in" in detail[0]


def test_a_run_that_is_a_loop_of_links_is_no_run(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "c")
    assert list_runs(tmp_path) == []
