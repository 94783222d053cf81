"""What others named is data: neither the terminal nor the console's markup obeys a word of it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from decision_traces import TraceStore
from decision_traces.cli import attention, attribution, compare, csqa_enc, index, lens, ls, nexttok, view
from decision_traces.cli._app import make_console
from decision_traces.cli._counting import counting
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import UsageError
from decision_traces.format.meta import RunMeta
from decision_traces.printable import one_line, printable
from decision_traces.store.reading.about import uncertified

EVIL = "[/bold]\x1b]52;c;aGk=\x07\x1b]8;;http:x\x07\x9b31m\u202e\r\nFAKED\tline\u2028FAKED"
SEEN = r"[/bold]\x1b]52;c;aGk=\x07\x1b]8;;http:x\x07\x9b31m\u202e\r\nFAKED\tline\u2028FAKED"
OBEYED = re.compile("\x1b(?!\\[[0-9;?]*[A-Za-z])|[\x00-\x08\x0b\x0c\x0e-\x1a\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e]")
"""Anything but what rich itself writes: SGR and cursor sequences, and the carriage returns of its bars."""


def _exit_code(main: Callable, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded model in which every name that a stranger can choose is an attack."""
    base = tmp_path_factory.mktemp("evil")
    texts, out = base / f"{EVIL.replace('/', '')}.csv", base / EVIL / f"run {EVIL.replace('/', '')}"
    lines = [f"the cat {i} {EVIL} sat on the mat and the dog {i} ran to the house" for i in range(10)]
    pd.DataFrame({"text": lines, f"column {EVIL}": lines, "example_id": [f"{EVIL}{i}" for i in range(10)]}).to_csv(
        texts, index=False
    )
    flags = ("--model", EVIL, "--model_path", str(MODEL_DIR), "--text_file", str(texts), "--out_dir", str(out))
    assert _exit_code(nexttok.main, *flags, "--capture", "attn", "qkv", "hidden", "resid", "--quiet") == 0
    return out


@pytest.fixture(params=["pipe", "terminal"])
def printed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[[], str]]:
    """Return a function that gives what was printed since, with nothing in it to obey."""
    if request.param == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "600")

    def since() -> str:
        out, err = capsys.readouterr()
        assert OBEYED.search(out + err) is None
        told = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out + err)
        assert not re.search(r"^\W*FAKED", told, re.MULTILINE)
        return told

    since()
    yield since


@pytest.mark.parametrize("command", [lens, attribution, attention, compare, index], ids=lambda c: c.__name__)
def test_no_command_obeys_what_a_run_says(command, evil_run: Path, printed: Callable[[], str]) -> None:
    more = ("--validate",) if command is index else ()
    assert _exit_code(command.main, str(evil_run), *more) in {0, 1}
    assert SEEN.split("8;;")[1] in printed()


def test_a_list_shows_every_run_whatever_it_is_called(evil_run: Path, printed: Callable[[], str]) -> None:
    assert _exit_code(ls.main, str(evil_run.parent)) == 0
    told = "".join(printed().split())  # a narrow column is folded
    assert "[/bold]" in told and "complete" in told


def test_an_extraction_says_names_as_they_are(tmp_path: Path, printed: Callable[[], str]) -> None:
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n")
    flags = ("--model", EVIL, "--model_path", str(MODEL_DIR), "--text_file", str(tmp_path / "texts.txt"))
    assert _exit_code(nexttok.main, *flags, "--out_dir", str(tmp_path / EVIL)) == 0
    assert f"Run: {printable(str(tmp_path / EVIL))}" in printed().replace("\n", "")


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (ls.main, (EVIL,)),
        (lens.main, (EVIL,)),
        (view.main, (EVIL,)),
        (nexttok.main, ("--dataset", "tinyworld", "--model", EVIL)),
        (csqa_enc.main, ("--dataset", "tinyworld", "--model_path", EVIL)),
        (nexttok.main, ("--dataset", EVIL)),
        (index.main, ("run", "--rows", EVIL)),
        (ls.main, ("here", EVIL)),
    ],
)
def test_errors_repeat_a_name_and_nothing_happens(main, flags: tuple[str, ...], printed: Callable[[], str]) -> None:
    assert _exit_code(main, *flags) in {1, 2}
    assert r"\x1b]52" in printed()


def test_bars_are_drawn_around_what_is_said(printed: Callable[[], str]) -> None:
    with counting(make_console(stderr=True), EVIL, quiet=False) as progress:
        if progress is not None:
            progress(1, 2)
    told = printed()
    assert told == "" or SEEN in told


def test_python_says_the_same(evil_run: Path) -> None:
    store = TraceStore(evil_run)
    failed = RunMeta.read({"certificate": {"checks": [{"name": EVIL, "passed": False}]}})
    for told in (repr(store), uncertified(failed), str(UsageError(EVIL))):
        assert SEEN in told and OBEYED.search(told) is None


def test_what_is_shown_of_a_text() -> None:
    assert printable("a\tb\nç 漢 😀 [/bold] \\x1b") == r"a\tb\nç 漢 😀 [/bold] \x1b"
    every = "".join(map(chr, [*range(32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F)]))
    assert printable(every).isascii() and printable(every).isprintable()
    assert printable("\u2066\u2069\ud800\r\u2028\u2029") == r"\u2066\u2069\ud800\r\u2028\u2029"
    assert (one_line("one\ntwo", 20), one_line("x" * 21, 20)) == (r"one\ntwo", "x" * 19 + "…")
    assert len(one_line("\x1b" * 2_000_000, 80)) == 80


def test_a_command_that_is_printed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\n")
    out = tmp_path / "a run; touch PWNED"
    flags = ("--model", "demo", "--text_file", str(tmp_path / "texts.txt"))
    assert _exit_code(nexttok.main, *flags, "--out_dir", str(out)) == 0
    assert f"Check it: decision-traces index '{out}' --validate" in capsys.readouterr().out
