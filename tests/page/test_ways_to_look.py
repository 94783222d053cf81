"""A bundle for any file server, a frame and a still picture for notebooks, and the command."""

import json
import urllib.request
from pathlib import Path

import pytest

from decision_traces import TraceStore
from decision_traces.cli import view
from decision_traces.errors import RunExistsError, UsageError
from decision_traces.page.bundle import write_bundle
from decision_traces.page.notebook import _servers
from decision_traces.page.serve import listen
from decision_traces.store.files.results_place import ResultsPlace

EXACT = ("e/1/c0/attn/4/2/0.f16", "e/2/c0/attn/0/0/0.f16")


def _exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        view.main(list(argv))
    return int(stopped.value.code or 0)


def test_a_bundle_has_what_the_server_answers(client, demo_run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "site"
    assert _exit_code(str(demo_run), "--bundle", str(folder), "--limit", "3") == 0
    assert "python -m http.server" in capsys.readouterr().out
    assert json.loads((folder / "api" / "runs.json").read_text())["bundle"] is True
    assert json.loads((folder / "api" / "demo-run" / "meta.json").read_text())["n"] == 3
    for path in (
        "e/2/lens.json",
        "e/2/c0/tokens.json",
        "e/1/c0/attn/4/2.u8",
        "e/0/lens/0.bin",
        "e/0/lens/kl.json",
        *EXACT,
    ):
        assert (folder / "api" / "demo-run" / path).read_bytes() == client.get(f"/api/r0/{path}").content
    assert not (folder / "api" / "demo-run" / "e" / "3").exists()
    assert (folder / "index.html").is_file() and (folder / "assets" / "page.js").is_file()


def test_a_bundle_of_what_is_drawn_alone_is_smaller(demo_run: Path, tmp_path: Path) -> None:
    whole = write_bundle([demo_run], tmp_path / "whole", limit=2)
    drawn = write_bundle([demo_run], tmp_path / "drawn", limit=2, drawn_only=True)
    exact = [p for p in (tmp_path / "whole").rglob("*.f16")]
    assert len(exact) == 2 * 5 * 4 and not list((tmp_path / "drawn").rglob("*.f16"))
    assert whole.files - drawn.files == len(exact)
    told = [json.loads((tmp_path / f / "api" / "runs.json").read_text())["exact"] for f in ("whole", "drawn")]
    assert told == [True, False]


def test_a_bundle_replaces_nothing_it_should_not(demo_run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert _exit_code(str(demo_run), "--bundle", str(tmp_path / "mine"), "--overwrite") == 1
    assert "is not a bundle folder" in capsys.readouterr().err and (tmp_path / "mine" / "thesis.txt").is_file()
    with pytest.raises(UsageError, match="which is to be shown, lies there"):
        write_bundle([demo_run], demo_run.parent, overwrite=True)
    write_bundle([demo_run], tmp_path / "site", limit=1)
    with pytest.raises(RunExistsError, match=r"already holds a bundle.*--overwrite"):
        write_bundle([demo_run], tmp_path / "site", limit=1)
    assert write_bundle([demo_run], tmp_path / "site", limit=1, overwrite=True).files > 20


def test_flags_that_do_not_go_together(demo_run: Path, capsys) -> None:
    assert _exit_code(str(demo_run), "--limit", "3") == 1
    assert "--limit goes with --bundle" in capsys.readouterr().err
    assert _exit_code(str(demo_run), "--drawn_only") == 1
    assert "--drawn_only goes with --bundle" in capsys.readouterr().err
    assert _exit_code(str(demo_run / "nothing"), "--no_browser") == 1
    assert "No run folder" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(demo_run: Path) -> None:
    server = listen([demo_run], port=0)
    with pytest.raises(UsageError, match="--port"):
        listen([demo_run], port=server.port)
    with pytest.raises(UsageError, match="--port"):
        listen([demo_run], port=70_000)
    server.socket.close()


def test_a_notebook_shows_the_page(demo_run: Path) -> None:
    store = TraceStore(demo_run)
    frame = store.view(2)
    assert "<iframe" in frame._repr_html_() and store.example_id(2) in frame.url
    with urllib.request.urlopen(frame.url) as answer:
        assert b"decision traces" in answer.read()
    assert store.view().url.split("?")[0] == frame.url.split("?")[0]  # one server a run
    server = _servers.pop(ResultsPlace(demo_run.resolve()))
    server.stop()


def test_a_still_picture(demo_run: Path, question_run: Path, choice_run: Path, bare_run: Path) -> None:
    for run in (demo_run, question_run, choice_run):
        still = TraceStore(run).show(1)
        assert still._repr_png_().startswith(b"\x89PNG") and len(still.png) > 10_000
        assert TraceStore(run).example_id(1) in repr(still)
    with pytest.raises(UsageError, match="decision-traces lens"):
        TraceStore(bare_run).show(0)
