"""No module outside of `tasks` decides by the name of a kind of decision, or of a model's head."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from decision_traces.format.arrays import ModelTask
from decision_traces.format.heads import HEADS
from decision_traces.model import checkpoint
from decision_traces.tasks import ENCODE, TASKS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "decision_traces"
HOMES = {"tasks", "format/heads.py"}
NAMES = {*TASKS, *get_args(ModelTask)}
OWN = {column.name for task in TASKS.values() for column in task.columns} - {column.name for column in ENCODE.columns}
"""Columns that only runs of some kinds have: who asks whether one is there asks for the kind."""


def named(node: ast.AST, names: set[str] = NAMES) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in names}


def asks_for_columns(node: ast.AST) -> bool:
    """Whether this is `"masked_pos" in store.columns`; that some are all there (`<=`) may be needed besides."""
    asks = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn)
    return asks and bool(named(node, OWN)) and "columns" in ast.unparse(node)


def left_open(match: ast.Match) -> bool:
    """Whether a new name would fall through a `match`."""
    last = match.cases[-1].body[-1]
    call = last.value if isinstance(last, ast.Expr | ast.Return) else None
    return not (isinstance(call, ast.Call) and ast.unparse(call.func) == "assert_never")


def decided_by_name(source: str) -> Iterator[str]:
    """Yield comparisons with a kind's name, sets of names, and a `match` on them that does not name all."""
    for node in ast.walk(ast.parse(source)):
        compared = isinstance(node, ast.Compare) or (isinstance(node, ast.Set) and len(node.elts) == len(named(node)))
        is_open = isinstance(node, ast.Match) and any(named(case.pattern) for case in node.cases) and left_open(node)
        if (compared and named(node)) or asks_for_columns(node) or is_open:
            yield ast.unparse(node).split("\n")[0]


def test_kinds_are_asked_and_not_compared() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {what}"
        for file in PACKAGE.rglob("*.py")
        if not {str(file.relative_to(PACKAGE)), file.relative_to(PACKAGE).parts[0]} & HOMES
        for what in decided_by_name(file.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_what_would_be_found() -> None:
    assert list(decided_by_name("if run.objective == 'masked': pass")) == ["run.objective == 'masked'"]
    assert list(decided_by_name("words = frozenset({'causal', 'masked'})")) == ["{'causal', 'masked'}"]
    assert list(decided_by_name("ok = 'masked_pos' in store.columns")) == ["'masked_pos' in store.columns"]
    closed = "match task:\n case 'causal': x()\n case _: assert_never(task)"
    assert list(decided_by_name(closed)) == []
    assert list(decided_by_name(closed.replace("assert_never(task)", "y()"))) == ["match task:"]


def test_the_page_asks_what_the_server_says_of_the_kind() -> None:
    words = re.compile("|".join(f'"{name}"' for name in sorted(NAMES - {"target"})))  # a bar of the page is one too
    files = [*(ROOT / "page" / "src").rglob("*.ts"), *(ROOT / "page" / "src").rglob("*.tsx")]
    assert len(files) > 40
    assert {
        f.name: words.findall(f.read_text(encoding="utf-8")) for f in files if words.search(f.read_text("utf-8"))
    } == {}


def test_every_head_has_its_rows() -> None:
    heads = set(get_args(ModelTask))
    assert set(HEADS) == set(checkpoint._HEADS) == set(checkpoint._NEEDS) == heads
    assert {task.model for task in TASKS.values()} == heads
