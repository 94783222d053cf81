"""Runs that the page is tried on, a server on a free port, and a real browser where there is one."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from decision_traces.page.app import create_app
from decision_traces.page.runs import PageRun
from decision_traces.page.serve import listen

CAPTURES = ("attn", "qkv", "hidden", "resid")
SCRIPT = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> the cat sat on the mat and the cat sat"
)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve examples of the embedded model with everything captured and analysed at every position."""
    from decision_traces.cli import demo

    out = tmp_path_factory.mktemp("page") / "demo run"
    with pytest.raises(SystemExit):
        demo.main(["--limit", "12", "--quiet", "--out_dir", str(out)])
    return out


@pytest.fixture(scope="session")
def question_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions answered by the embedded model, with the race of their choices."""
    from decision_traces.cli import attribution, lens
    from decision_traces.extract.answer import AnswerConfig, extract_answers

    out = tmp_path_factory.mktemp("page") / "questions"
    extract_answers(AnswerConfig(model="demo", dataset="tinyworld", limit=6, capture=CAPTURES, out_dir=out))
    for main in (lens.main, attribution.main):
        with pytest.raises(SystemExit):
            main([str(out), "--all_positions", "--quiet"])
    return out


@pytest.fixture(scope="session")
def choice_run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_folder) -> Path:
    """Questions to a tiny encoder, every choice with its own inner path."""
    from decision_traces.cli import attribution, lens
    from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice

    out = tmp_path_factory.mktemp("page") / "choices"
    extract_multiple_choice(
        MultipleChoiceConfig(
            model_path=tiny_encoder_folder("roberta"),
            dataset="tinyworld",
            limit=4,
            capture=("attn", "hidden", "resid"),
            out_dir=out,
        )
    )
    for main in (lens.main, attribution.main):
        with pytest.raises(SystemExit):
            main([str(out), "--quiet"])
    return out


@pytest.fixture(scope="session")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of one's own, one of them a script, with hidden states alone and no analysis."""
    from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

    folder = tmp_path_factory.mktemp("page")
    texts = folder / "texts.txt"
    texts.write_text(f"{SCRIPT}\nthe dog ran to the house and the dog ran\n")
    return extract_next_token(
        NextTokenConfig(model="demo", text_file=texts, capture=("hidden",), out_dir=folder / "bare")
    )


@pytest.fixture(scope="session")
def client(demo_run: Path, question_run: Path, choice_run: Path, bare_run: Path) -> TestClient:
    """The application in-process, over all four runs: r0 to r3."""
    runs = [PageRun(f"r{i}", path) for i, path in enumerate((demo_run, question_run, choice_run, bare_run))]
    return TestClient(create_app(runs), base_url="http://127.0.0.1", raise_server_exceptions=True)


@pytest.fixture(scope="session")
def address(demo_run: Path, question_run: Path, choice_run: Path, bare_run: Path) -> Iterator[str]:
    """Where a real server shows the four runs."""
    server = listen([demo_run, question_run, choice_run, bare_run], port=0)
    thread = server.start()
    yield server.url
    server.stop()
    thread.join(10)
    server.socket.close()


def chromium() -> str | None:
    """The browser to test with: Debian's, or the one that DECISION_TRACES_CHROMIUM names."""
    return os.environ.get("DECISION_TRACES_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
