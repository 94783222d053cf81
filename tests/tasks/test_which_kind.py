"""Which kind of decision a run is about: as its meta names it, else as its columns tell."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from decision_traces.analysis.decisions import decisions_of, kinds_of
from decision_traces.store import TraceStore
from decision_traces.tasks import ENCODE, MASKED_TOKEN, MULTIPLE_CHOICE, NEXT_TOKEN, PROMPT_CHOICE, TASKS, task_of
from decision_traces.tasks.task import Task

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_name_in_the_meta_decides_and_no_column_is_looked_at() -> None:
    def columns() -> list[str]:
        raise AssertionError("read")

    names = ["next_token", "target", "masked", "csqa_choice", "multiple_choice", "encode"]
    assert [task_of(name, columns).objective for name in names] == names == list(TASKS)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (("text", "next_pos", "next_true_id"), "next_token"),
        (("text", "next_pos", "target_text"), "target"),
        (("text", "masked_pos"), "masked"),
        (("text", "choice_token_ids", "correct_idx"), "csqa_choice"),
        (("text", "label_idx"), "multiple_choice"),
        (("text", "kind"), "encode"),
    ],
)
def test_a_run_that_names_none_is_known_by_its_columns(columns: tuple[str, ...], kind: str) -> None:
    assert task_of("an older tool's word", lambda: columns).objective == kind


def test_what_kinds_say_of_themselves() -> None:
    between = [NEXT_TOKEN, TASKS["target"], MASKED_TOKEN, PROMPT_CHOICE, MULTIPLE_CHOICE, ENCODE]
    assert [task.choices for task in between] == [None, None, None, "tokens", "sequences", None]
    assert [task.decided_at for task in between] == ["next_pos", "next_pos", None, "answer_pos", None, None]
    assert [tuple(task.decisions) for task in between] == [("next", "after")] * 2 + [(), ("answer",), (), ()]
    assert [task.model for task in between] == ["causal", "seq2seq", "masked", "causal", "multiple_choice", "encode"]
    assert all(isinstance(task, Task) and len({c.name for c in task.columns}) == len(task.columns) for task in between)


@pytest.mark.parametrize("name", ["run_1_0", "run_1_1"])
def test_a_run_of_an_older_format_without_a_name(name: str, tmp_path: Path) -> None:
    before = TraceStore(GOLDEN / name)
    assert before.task is NEXT_TOKEN and kinds_of(before) == ("next",)
    assert json.loads((GOLDEN / name / "meta.json").read_text("utf-8"))["objective"] == "next_token"
    np.testing.assert_array_equal(decisions_of(before).position, [p for p in before.tokens["next_pos"] if p >= 0])
    assert pa.types.is_integer(before.schema.field("next_pos").type)
