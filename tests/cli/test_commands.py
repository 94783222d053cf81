"""The command line in-process: exit codes, what is printed where, help, and paths as the seed document writes them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from decision_traces import TraceStore
from decision_traces.cli import index, ls, nexttok
from decision_traces.cli.main import COMMANDS
from decision_traces.cli.main import main as dispatch

ROOT = Path(__file__).parents[2]


def _exit_code(main, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture
def flags(tiny_folder, tmp_path: Path) -> list[str]:
    texts = tmp_path / "lines.txt"
    texts.write_text("".join(f"line number {i}\n" for i in range(12)))
    return ["--model_path", str(tiny_folder("llama")), "--text_file", str(texts), "--batch_size", "4"]


def test_extract_index_and_list(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "traces" / "mine"
    argv = [*flags, "--capture", "attn", "qkv", "hidden", "resid", "--max_seq_len", "64", "--out_dir", str(out)]
    assert _exit_code(nexttok.main, *argv) == 0
    printed = capsys.readouterr()
    assert f"Run: {out}" in printed.out and "certificate passed" in printed.out
    assert re.search(r"12 of 12 examples · .* examples/s · .* tokens/s · .* MB written · 0:00 left", printed.err)
    assert TraceStore(out).meta["command"] == ["decision-traces", "nexttok", *argv]
    assert _exit_code(index.main, str(out), "--validate") == 0
    assert (out / "index.json").is_file()
    capsys.readouterr()
    assert _exit_code(ls.main, str(out.parent)) == 0
    assert "mine" in capsys.readouterr().out


def test_quiet_prints_nothing(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert _exit_code(nexttok.main, *flags, "--quiet", "--limit", "1", "--out_dir", str(tmp_path / "run")) == 0
    assert capsys.readouterr() == ("", "")


def test_an_error_is_one_line_on_stderr_and_exit_1(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    assert _exit_code(nexttok.main, *flags, "--limit", "0") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: --limit 0: needs at least 1 (leave it out for all examples).\n"


@pytest.mark.parametrize("wrong", [["--capture", "hiden"], ["--max_seq_len", "long"], ["--dataset", "wikitext3"]])
def test_a_misspelt_choice_is_refused_with_the_choices(
    wrong: list[str], flags: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert _exit_code(nexttok.main, *flags, *wrong) == 2
    message = capsys.readouterr().err
    choices = {"--capture": ("attn", "hidden"), "--max_seq_len": ("auto",), "--dataset": ("wikitext2", "tinyworld")}
    assert all(choice in message for choice in choices[wrong[0]])
    assert "Traceback" not in message


def test_windows_paths_of_the_usage_document_work_here(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _exit_code(nexttok.main, *flags, "--quiet", "--limit", "2", "--out_dir", r"traces\wt2_val500_gpt2") == 0
    assert (tmp_path / "traces" / "wt2_val500_gpt2" / "meta.json").is_file()
    assert _exit_code(index.main, r"traces\wt2_val500_gpt2", "--validate") == 0


def test_the_default_place_is_traces_with_the_run_id(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _exit_code(nexttok.main, *flags, "--quiet", "--limit", "2") == 0
    (run,) = (tmp_path / "traces").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}_llama_lines_all_n2_nexttok", run.name)


def test_the_dispatcher_knows_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for argv, code in ((["x"], 0), (["x", "--help"], 0), (["x", "--version"], 0), (["x", "nextok"], 2)):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stopped:
            dispatch()
        assert stopped.value.code == code
    printed = capsys.readouterr()
    assert all(f"  {name}" in printed.out for name in COMMANDS)
    assert "there is no command 'nextok'" in printed.err


@pytest.mark.parametrize("script", ["extract_trace_nexttok_dec", "index_traces"])
def test_the_documented_scripts_run_from_a_clone(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"src.cli.{script}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--validate" in done.stdout or "--max_seq_len" in done.stdout


def test_the_documented_import_is_the_reader() -> None:
    code = (
        "from src.traces_utils.store import TraceStore; import decision_traces as d; assert TraceStore is d.TraceStore"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
