"""The Python that a panel offers gives the panel's own numbers, whatever a run, its path and examples are called."""

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from decision_traces.cli import attribution, lens, nexttok
from decision_traces.page import snippets
from decision_traces.page.app import create_app
from decision_traces.page.runs import PageRun
from decision_traces.store.files.results_place import ResultsPlace

EVIL = "x'); import os; os.system('touch PWNED'); ('"


def _page(run: Path) -> Callable[[str], Any]:
    """Return what answers as the page's server does."""
    client = TestClient(create_app([PageRun("r0", ResultsPlace(run))]), base_url="http://127.0.0.1")
    return lambda path: client.get(f"/api/r0/{path}").json()


def run_snippet(opening: str, snippet: str, **chosen: Any) -> Any:
    """Run what a user would paste, and return the value of its last line."""
    given = "".join(f"{name} = {value!r}\n" for name, value in chosen.items())
    *lines, last = ast.parse(f"{opening}\n{given}{snippet}").body
    assert isinstance(last, ast.Expr)
    scope: dict[str, Any] = {}
    exec(compile(ast.Module(lines, []), "snippet", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "snippet", "eval"), scope)


@pytest.fixture(scope="module")
def evil_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose path and whose examples' ids leave any literal that is not made by repr."""
    base = tmp_path_factory.mktemp("evil")
    texts, out = base / f"{EVIL}.txt", base / f"""it's "mine" \\ {EVIL}"""
    texts.write_text("the cat sat on the mat\n")
    words = ("--capture", "attn", "qkv", "hidden", "resid", "--out_dir", str(out), "--quiet")
    for main, flags in (
        (nexttok.main, ("--model", "demo", "--text_file", str(texts), *words)),
        (lens.main, (str(out), "--all_positions", "--quiet")),
        (attribution.main, (str(out), "--all_positions", "--quiet")),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(flags)
        assert not stopped.value.code
    return out


@pytest.fixture(autouse=True)
def _nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("name", ["demo_run", "evil_run", "question_run", "choice_run"])
def test_snippets_give_what_panels_show(name: str, request: pytest.FixtureRequest) -> None:
    ask = _page(request.getfixturevalue(name))
    meta = ask("meta.json")
    for choice in range(2 if meta["task"]["n_choices"] else 1):
        tokens = ask(f"e/0/c{choice}/tokens.json")
        assert (EVIL in tokens["example_id"]) == (name == "evil_run")
        read = tokens["python"]
        assert len(run_snippet(meta["python"], read["tokens"])["input_ids"]) == tokens["n_tokens"]
        assert run_snippet(meta["python"], read["decision"])["example_id"] == tokens["example_id"]
        shown = ask(f"e/0/c{choice}/attn/1/2/0.json")
        for snippet in (read["attention"], shown["python"]):
            found = run_snippet(meta["python"], snippet, layer=1, head=2)
            np.testing.assert_allclose(found[shown["queries"]], shown["attention"], rtol=6e-3)
    if meta["lens"] is not None:
        _lens(ask, meta["python"])
    if name in {"question_run", "choice_run"}:
        by_choice = ask("e/0/by_choice.json")
        found = run_snippet(meta["python"], by_choice["python"])
        assert list(found["label"][: len(by_choice["labels"])]) == by_choice["labels"]
        np.testing.assert_allclose(found["prob"], np.ravel(by_choice["probs"]), rtol=1e-4)
        np.testing.assert_allclose(found["logit"], np.ravel(by_choice["logits"]), rtol=1e-4)
    position = 0 if meta["task"]["n_choices"] else ask("e/0/c0/tokens.json")["decision"]["pos"]
    parts = ask(f"e/0/contributions/{position}.json")
    np.testing.assert_allclose(run_snippet(meta["python"], parts["python"]), parts["values"], rtol=1e-4)


@pytest.mark.parametrize("name", ["question_run", "choice_run"])
def test_an_examples_id_is_one_literal(name: str, request: pytest.FixtureRequest, monkeypatch) -> None:
    run = PageRun("r0", ResultsPlace(request.getfixturevalue(name)))
    monkeypatch.setattr(type(run.store), "example_id", lambda *_: EVIL)
    for snippet in (
        snippets.tokens(run, 0, 1),
        snippets.decision(run, 0),
        snippets.attention(run, 0, 1),
        snippets.lens(run, 0),
        snippets.trajectories(run, 0) if name == "question_run" else snippets.lens(run, 0, "kl"),
        snippets.lens_by_choice(run, 0),
        snippets.contributions(run, 0, 1, [0, 2]),
    ):
        parsed = list(ast.walk(ast.parse(snippet)))
        assert [node.value for node in parsed if isinstance(node, ast.Constant)].count(EVIL) == 1
        assert not any(isinstance(node, ast.Name) and node.id == "os" for node in parsed)


def _lens(ask: Callable[[str], Any], opening: str) -> None:
    head, shown = ask("e/0/lens.json"), {s: ask(f"e/0/lens/{s}.json") for s in ("prob", "rank", "entropy", "kl")}
    for statistic, values in shown.items():
        for snippet in (head["python"]["lens"], values["python"]):
            found = run_snippet(opening, snippet, stat=statistic)
            np.testing.assert_allclose(found, values[statistic], rtol=1e-3, atol=1e-9)
    slot = len(head["pos"]) // 2
    found = run_snippet(opening, head["python"]["trajectories"], pos=head["pos"][slot])
    assert found.shape == (head["depths"], len(head["candidates"][slot]))
    target = [depth[slot] for depth in shown["prob"]["prob"]]
    np.testing.assert_allclose(found[:, 0], target, rtol=1e-3, atol=1e-7)  # float16, small ones with few digits
