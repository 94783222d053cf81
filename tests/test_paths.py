"""Paths as users type them: `~` is home, backslashes are slashes, and addresses make no folders."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from decision_traces import TraceStore
from decision_traces.cli import attention, attribution, compare, finetune, index, lens, ls, nexttok, view
from decision_traces.errors import PathError, UsageError
from decision_traces.extract.next_token import NextTokenConfig
from decision_traces.paths import portable_path


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As outside of tests, where nothing checks a call's types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_home_is_expanded_and_drives_of_windows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert portable_path("~/runs/a") == tmp_path / "runs" / "a"
    assert portable_path(Path("~\\runs")) == tmp_path / "runs"
    assert portable_path(r"traces\RUN") == Path("traces/RUN")
    assert portable_path(r"D:\traces") == Path("D:/traces")
    (tmp_path / "~draft").mkdir()
    (tmp_path / "~").mkdir()  # as the shell has it: home, whatever lies here
    assert portable_path("~draft") == Path("~draft")
    assert portable_path("~") == tmp_path
    with pytest.raises(PathError, match="there is no home folder of ~nobody-at-all"):
        portable_path("~nobody-at-all/x")


@pytest.mark.parametrize("name", ["loop", "loop/run", "dangling/run", "to_a_file", "to_a_file/run", "x" * 300, "a\0b"])
def test_links_that_lead_nowhere_are_refused_in_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    Path("file").write_text("words")
    Path("to_a_file").symlink_to("file")
    extract = ["--model", "demo", "--dataset", "tinyworld", "--limit", "1", "--out_dir"]
    commands = [(command.main, [name]) for command in (attention, attribution, compare, index, lens, ls, view)]
    commands += [(finetune.main, ["--model_path", name, "--quiet", "--dataset", "tinyworld"])]
    if not name.startswith("dangling"):  # there the folder is made that the link leads to
        commands += [(nexttok.main, [*extract, name]), (nexttok.main, [*extract, name, "--overwrite"])]
    for main, flags in commands:
        with pytest.raises(SystemExit) as stopped:
            main(flags)
        printed = capsys.readouterr().err
        assert stopped.value.code == 1 and printed.startswith("error: ") and printed.count("\n") == 1, printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "loop", "to_a_file"]
    assert Path("file").read_text() == "words"


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://b/r", "https://x.org/texts.txt", "file:///tmp/x"])
def test_addresses_are_refused_in_one_sentence(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    extract = ["--model", "demo", "--dataset", "tinyworld", "--limit", "1"]
    commands = [(nexttok.main, [*extract, flag, address]) for flag in ("--out_dir", "--text_file", "--data_dir")]
    commands += [(command.main, [address]) for command in (compare, lens, ls, view)]
    commands.append((view.main, [str(tmp_path), "--bundle", address]))
    for main, flags in commands:
        with pytest.raises(SystemExit) as stopped:
            main(flags)
        printed = capsys.readouterr().err
        assert stopped.value.code == 1 and printed.count("\n") == 1, printed
        assert "is an address, where a path of this machine belongs" in printed
    with pytest.raises(PathError):
        TraceStore(address)
    with pytest.raises(PathError):
        NextTokenConfig(out_dir=Path(address))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_python_takes_text_and_lists() -> None:
    given = NextTokenConfig(
        out_dir="x", text_file="y.txt", capture="hidden attn", layers=[0, -1], heads=2, positions=range(3)
    )
    assert (given.out_dir, given.text_file, given.capture) == (Path("x"), Path("y.txt"), ("hidden", "attn"))
    assert (given.layers, given.heads, given.positions) == ("0,-1", "2", "0,1,2")
    assert NextTokenConfig(capture=["attn"]).capture == ("attn",)
    for wrong, said in (
        ({"capture": 3}, r"capture=3: give words, such as capture=\('hidden', 'attn'\)"),
        ({"layers": [0, "a"]}, r"layers=\[0, 'a'\]: give 'all', or numbers such as layers=\[0, 5, -1\]"),
        ({"positions": 1.5}, "positions=1.5: give 'all', or numbers"),
        ({"out_dir": 7}, "out_dir=7: give a path, as text or as a pathlib.Path"),
    ):
        with pytest.raises(UsageError, match=said):
            NextTokenConfig(**wrong)
