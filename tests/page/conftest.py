"""Runs that the page is tried on, a server on a free port, and a real browser where there is one."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from starlette.testclient import TestClient

from decision_traces.page.app import create_app
from decision_traces.page.runs import PageRun
from decision_traces.page.serve import PageServer, listen
from decision_traces.store.files.results_place import ResultsPlace

CAPTURES = ("attn", "qkv", "hidden", "resid")
SCRIPT = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> the cat sat on the mat and the cat sat"
)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that makes a folder once for all worker processes of this test run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "page-runs"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done, lock = shared / name, shared / f"{name}.done", shared / f"{name}.lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made


def _run(main: Callable[[list[str]], NoReturn], *argv: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    assert not stopped.value.code


@pytest.fixture(scope="session")
def demo_run(once) -> Path:
    """Twelve examples of the embedded model with everything captured and analysed at every position."""
    from decision_traces.cli import demo

    return once("demo run", lambda out: _run(demo.main, "--limit", "12", "--quiet", "--out_dir", str(out)))


@pytest.fixture(scope="session")
def question_run(once) -> Path:
    """Questions answered by the embedded model, with the lens by choice."""
    from decision_traces.cli import attribution, lens
    from decision_traces.extract.answer import AnswerConfig, extract_answers

    def make(out: Path) -> None:
        extract_answers(AnswerConfig(model="demo", dataset="tinyworld", limit=6, capture=CAPTURES, out_dir=out))
        for main in (lens.main, attribution.main):
            _run(main, str(out), "--all_positions", "--quiet")

    return once("questions", make)


@pytest.fixture(scope="session")
def choice_run(once, tiny_encoder_folder) -> Path:
    """Questions to a tiny encoder, each choice with activations of its own."""
    from decision_traces.cli import attribution, lens
    from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice

    def make(out: Path) -> None:
        model = tiny_encoder_folder("roberta")
        words = ("attn", "hidden", "resid")
        extract_multiple_choice(
            MultipleChoiceConfig(model_path=model, dataset="tinyworld", limit=4, capture=words, out_dir=out)
        )
        for main in (lens.main, attribution.main):
            _run(main, str(out), "--quiet")

    return once("choices", make)


@pytest.fixture(scope="session")
def bare_run(once) -> Path:
    """Texts of one's own, one of them a script, with hidden states alone and no analysis."""
    from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

    def make(out: Path) -> None:
        texts = out.with_suffix(".txt")
        texts.write_text(f"{SCRIPT}\nthe dog ran to the house and the dog ran\n")
        extract_next_token(NextTokenConfig(model="demo", text_file=texts, capture=("hidden",), out_dir=out))

    return once("bare", make)


@pytest.fixture(scope="session")
def client(demo_run: Path, question_run: Path, choice_run: Path, bare_run: Path) -> TestClient:
    """The application in-process, over all four runs: r0 to r3."""
    runs = [
        PageRun(f"r{i}", ResultsPlace(path)) for i, path in enumerate((demo_run, question_run, choice_run, bare_run))
    ]
    return TestClient(create_app(runs), base_url="http://127.0.0.1", raise_server_exceptions=True)


@pytest.fixture(scope="session")
def server(demo_run: Path, question_run: Path, choice_run: Path, bare_run: Path) -> Iterator[PageServer]:
    """A real server that shows the four runs to who has its token."""
    server = listen([demo_run, question_run, choice_run, bare_run], port=0)
    thread = server.start()
    yield server
    server.stop()
    thread.join(10)
    server.socket.close()


@pytest.fixture(scope="session")
def address(server: PageServer) -> str:
    """Where it shows them."""
    return server.url


def chromium() -> str | None:
    """The browser to test with: Debian's, or the one that DECISION_TRACES_CHROMIUM names."""
    return os.environ.get("DECISION_TRACES_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
