"""A capture that goes wrong: refused, or kept on request as a run that says so wherever it is opened."""

from collections.abc import Callable
from pathlib import Path

import pytest

from decision_traces import TraceStore
from decision_traces.cli import extract, index, ls
from decision_traces.errors import CaptureError, UncertifiedWarning
from decision_traces.extract import prepare as extraction
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.tracing.recorder import Recorder

FAILED = "layer inputs are those transformers reports"


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once the model is proved, let the second layer's output be stored a hundredth too large."""
    put, certify = Recorder._put, extraction.certify_as_padded

    def wrong(self: Recorder, name: str, layer: int, value) -> None:
        put(self, name, layer, value * 1.01 if (name, layer) == ("dec.post_mlp", 1) else value)

    def then_wrong(*args):
        monkeypatch.setattr(Recorder, "_put", wrong)
        return certify(*args)

    monkeypatch.setattr(extraction, "certify_as_padded", then_wrong)
    return lambda: monkeypatch.setattr(Recorder, "_put", put)


@pytest.fixture
def flags(tiny_folder, tmp_path: Path) -> list[str]:
    (tmp_path / "lines.txt").write_text("A line of text.\nAnother, longer line of text.\nx\n")
    return ["--model_path", str(tiny_folder("gpt2")), "--text_file", str(tmp_path / "lines.txt")]


def exit_code(main, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


def test_nothing_is_written_of_a_run_that_fails_its_certificate(
    sabotage, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert exit_code(extract.main, *flags, "--out_dir", str(tmp_path / "runs" / "run")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"failed its certificate: {FAILED}" in printed.err and "--uncertified" in printed.err
    assert not (tmp_path / "runs").exists()


def test_the_library_raises_the_same(sabotage, tiny_folder, flags: list[str], tmp_path: Path) -> None:
    config = NextTokenConfig(model_path=tiny_folder("gpt2"), text_file=tmp_path / "lines.txt", out_dir=tmp_path / "run")
    with pytest.raises(CaptureError, match="Nothing was written"):
        extract_next_token(config)


@pytest.fixture
def kept(sabotage, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    """The run that was kept all the same; the recorder is honest again."""
    out = tmp_path / "runs" / "run"
    assert exit_code(extract.main, *flags, "--uncertified", "--out_dir", str(out)) == 0
    sabotage()
    printed = capsys.readouterr()
    assert f"WARNING: the certificate failed, and the run says so: {FAILED}" in printed.err
    assert "certificate FAILED: kept with --uncertified" in printed.out
    return out


def test_a_kept_run_says_so_when_it_is_opened(kept: Path) -> None:
    with pytest.warns(UncertifiedWarning, match=f"not certified .*{FAILED}"):
        store = TraceStore(kept)
    assert store.meta["uncertified"] is True and store.meta["certificate"]["passed"] is False
    assert repr(store).endswith("captured hidden resid, NOT CERTIFIED)")


@pytest.mark.filterwarnings("ignore::decision_traces.errors.UncertifiedWarning")
def test_validation_fails_by_name(kept: Path) -> None:
    failed = failures(validate_run(kept))
    assert "run is certified" in [c.name for c in failed]


def test_ls_and_index_say_so(kept: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(ls.main, str(kept.parent)) == 0
    assert "uncertified" in capsys.readouterr().out
    assert exit_code(index.main, str(kept)) == 0
    said = capsys.readouterr().out
    assert "This run is not certified (--uncertified)" in said and FAILED in said
    assert '"uncertified": "This run is not certified' in (kept / "index.json").read_text()
    assert exit_code(index.main, str(kept), "--validate", "--deep") == 1
    assert "FAIL run is certified: meta.json" in capsys.readouterr().out


def test_an_honest_run_with_the_flag_is_certified(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert exit_code(extract.main, *flags, "--quiet", "--uncertified", "--out_dir", str(out)) == 0
    store = TraceStore(out)
    assert store.meta["uncertified"] is False and "CERTIFIED" not in repr(store)
    assert not failures(validate_run(out))
