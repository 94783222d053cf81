"""One example as the page shows it: its tokens, its decision, what was right."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from decision_traces.errors import DamagedRunError
from decision_traces.page import snippets
from decision_traces.page.runs import PageRun
from decision_traces.page.slices import attention_layout
from decision_traces.page.text import plain, shown_tokens
from decision_traces.store import checked_index
from decision_traces.tasks.task import Option, Prediction, Said, Token

_MOST_TEXT = 20_000


def table_row(run: PageRun, row: int) -> dict[str, Any]:
    """Return one row of the token table, lists as they are."""
    return run.kept(("row", row), lambda: run.store.record(row))


def checked_row(run: PageRun, row: int) -> int:
    """Return the row.

    Raises:
        SelectionError: The run has no such row.
    """
    return checked_index(row, run.store.n, "row")


def checked_choice(run: PageRun, choice: int) -> int:
    """Return the choice; 0 is the only one of runs without.

    Raises:
        SelectionError: There is no such choice.
    """
    return checked_index(choice, (run.store.n_choices or 1) if run.task.reads_choices else 1, "choice")


def tokens_json(run: PageRun, row: int, choice: int) -> dict[str, Any]:
    """Return the tokens of an example (of one choice), and its decision."""
    values, side = table_row(run, row), run.store.sides[0]
    prefix = run.store.token_prefix(side)
    columns = {k: values.get(prefix + k) for k in ("tokens", "offset_mapping", "sequence_ids")}
    spans = run.store.spans_of(side)
    at = (row, choice) if run.task.reads_choices else row
    start, stop = int(spans.start[at]), int(spans.stop[at])
    if run.task.reads_choices:
        columns = {k: None if v is None else v[choice] for k, v in columns.items()}
    if any(v is not None and len(v) < stop for v in columns.values()):
        raise DamagedRunError(f"{run.store.example_id(row)} has {stop} tokens, and fewer in {', '.join(columns)}.")
    tokens = shown_tokens(columns, run.task.texts(values, choice), start, stop)
    made = decisions(run, values, start)
    for gap in made if run.task.fills_gaps else ():  # the model read the mask token, not what stands in the text
        if not 0 <= gap["pos"] < len(tokens):
            raise DamagedRunError(
                f"{run.store.example_id(row)}: a masked position is none of its {len(tokens)} tokens."
            )
        tokens[gap["pos"]] = plain(str(values["tokens"][gap["pos"] + start]))
    layout = attention_layout(run, row, choice)
    return {
        "example_id": run.store.example_id(row),
        "row": row,
        "choice": choice,
        "text": str(values.get("text") or "")[:_MOST_TEXT],
        "question": values.get("question") if run.task.choices else None,
        "tokens": tokens,
        "n_tokens": stop - start,
        "padding": max(len(columns["tokens"] or []), run.store.dims(side).n_positions) - (stop - start),
        "decision": next(iter(made), None),
        "decisions": made,
        "choices": choices(run, values),
        "attention": None if layout is None else layout.as_json(),
        "python": {
            "tokens": snippets.tokens(run, row, choice),
            "decision": snippets.decision(run, row),
            "attention": None if layout is None else snippets.attention(run, row, choice),
        },
    }


def choices(run: PageRun, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the choices of a question with their scores, None in runs without."""
    options = run.task.options(values)
    return None if options is None else [_option(one) for one in options]


def _option(one: Option) -> dict[str, Any]:
    scores = {"logit": one.logit, "prob": one.prob, **one.more}
    return {
        "label": one.label,
        "text": one.text,
        "id": one.id,
        **{name: number(score) for name, score in scores.items()},
        "right": one.right,
        "given": one.given,
    }


def decisions(run: PageRun, values: Mapping[str, Any], start: int) -> list[dict[str, Any]]:
    """Return where an example's predictions were made, what was predicted, and what is true; the run's own first."""
    return [_decision(one, start) for one in run.task.predictions(values, run.kinds)]


def _decision(one: Prediction, start: int) -> dict[str, Any]:
    pos = None if one.pos is None else one.pos - start
    said = {} if one.said is None else _said(one.said)
    return {"pos": pos, "correct": one.correct, "known": one.known, **said}


def _said(said: Said) -> dict[str, Any]:
    return {
        "true": _token(said.true),
        "pred": _token(said.pred),
        "entropy": number(said.entropy),
        "margin": number(said.margin),
        "rank": said.rank,
        "top": [_token(one) for one in said.top],
    }


def _token(token: Token | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token.id, "text": plain(token.text), "prob": number(token.prob)}


def number(value: Any, digits: int = 6) -> float | None:
    """Return a number of few digits, None for what is missing or not finite: JSON has no NaN."""
    return None if value is None or not np.isfinite(value) else float(f"{float(value):.{digits}g}")


def outcomes_json(run: PageRun, row: int) -> dict[str, Any] | None:
    """Return the outcome at every position, where the run kept it (`--all_positions`)."""
    table = run.store.outcomes(row)
    if table is None:
        return None
    start = int(run.store.spans.start[row])
    return {
        "pos": [int(p) - start for p in table.column("pos").to_pylist()],
        "true_prob": [number(v, 4) for v in table.column("true_prob").to_pylist()],
        "entropy": [number(v, 4) for v in table.column("entropy").to_pylist()],
        "rank": table.column("true_rank").to_pylist(),
        "pred": [plain(str(t)) for t in table.column("pred_token").to_pylist()],
    }
