"""One example as the page shows it: its tokens, its decision, what was right."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from decision_traces.errors import DamagedRunError
from decision_traces.format.columns import outcome_of
from decision_traces.page import snippets
from decision_traces.page.runs import PageRun
from decision_traces.page.slices import attention_layout
from decision_traces.page.text import plain, shown_tokens
from decision_traces.store import checked_index

_MOST_TEXT = 20_000
_OF_TEXTS = ("logprob_sum", "logprob_mean")


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
    return checked_index(choice, (run.store.n_choices or 1) if run.by_choice else 1, "choice")


def tokens_json(run: PageRun, row: int, choice: int) -> dict[str, Any]:
    """Return the tokens of an example (of one choice), and its decision."""
    values, side = table_row(run, row), run.store.sides[0]
    prefix = run.store.token_prefix(side)
    columns = {k: values.get(prefix + k) for k in ("tokens", "offset_mapping", "sequence_ids")}
    spans = run.store.spans_of(side)
    at = (row, choice) if run.by_choice else row
    start, stop = int(spans.start[at]), int(spans.stop[at])
    if run.by_choice:
        columns = {k: None if v is None else v[choice] for k, v in columns.items()}
    if any(v is not None and len(v) < stop for v in columns.values()):
        raise DamagedRunError(f"{run.store.example_id(row)} has {stop} tokens, and fewer in {', '.join(columns)}.")
    tokens = shown_tokens(columns, _texts(run, values, choice, prefix), start, stop)
    made = decisions(run, values, start)
    for gap in made if run.objective == "masked" else ():  # the model read the mask token, not what stands in the text
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
        "question": values.get("question") if run.store.n_choices or run.objective == "csqa_choice" else None,
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


def _texts(run: PageRun, values: Mapping[str, Any], choice: int, prefix: str) -> tuple[str, ...]:
    if run.by_choice:
        texts = values.get("choice_texts") or []
        return str(values.get("question") or ""), str(texts[choice]) if choice < len(texts) else ""
    return (str((values.get("target_text") if prefix else values.get("text")) or ""),)


def choices(run: PageRun, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the choices of a question with their scores, None in runs without."""
    if values.get("choice_probs") is None:
        return None
    texts = values.get("choice_texts") or values.get("csqa_choices") or []
    right = values.get("label_idx", values.get("correct_idx"))
    ids = values.get("choice_token_ids") or []
    return [
        {
            "label": str(label),
            "text": str(texts[i]) if i < len(texts) else "",
            "id": int(ids[i]) if i < len(ids) else i,
            "logit": number(values["choice_logits"][i]),
            "prob": number(values["choice_probs"][i]),
            **{name: number(values[f"choice_{name}"][i]) for name in _OF_TEXTS if values.get(f"choice_{name}")},
            "right": right == i,
            "given": values.get("pred_idx") == i,
        }
        for i, label in enumerate(values["choice_labels"])
    ]


def decisions(run: PageRun, values: Mapping[str, Any], start: int) -> list[dict[str, Any]]:
    """Return where an example's predictions were made, what was predicted, and what is true; the run's own first."""
    if values.get("choice_probs") is not None:
        own = {
            "pos": None if run.by_choice else int(values.get("answer_pos", start)) - start,
            "correct": values.get("is_correct"),
            "known": values.get("is_correct") is not None,
        }
        return [own]
    if run.objective == "masked":
        return masked_decisions(values, start)
    made = (outcome_of(values, kind) for kind in run.kinds)
    return [_decision(outcome, start) for outcome in made if outcome["pos"] is not None and outcome["pos"] >= 0]


def _decision(outcome: Mapping[str, Any], start: int) -> dict[str, Any]:
    """Return one prediction of a token."""
    top = zip(*(outcome[f"topk_{what}"] or [] for what in ("ids", "tokens", "probs")), strict=True)
    known = outcome["true_id"] is not None
    return {
        "pos": int(outcome["pos"]) - start,
        "correct": outcome["correct"] if known else None,
        "known": known,
        "true": _token(outcome, "true") if known else None,
        "pred": _token(outcome, "pred"),
        "entropy": number(outcome["entropy"]),
        "margin": number(outcome["margin"]),
        "rank": outcome["true_rank"],
        "top": [{"id": int(i), "text": plain(str(t)), "prob": number(p)} for i, t, p in top],
    }


def masked_decisions(values: Mapping[str, Any], start: int) -> list[dict[str, Any]]:
    """Return what was predicted at every masked position, and what stood there."""
    names = ("pos", "correct", "true_ids", "true_tokens", "true_probs", "pred_ids", "pred_tokens", "pred_probs")
    columns = [values.get(f"masked_{name}") or [] for name in (*names, "entropies", "true_ranks")]
    found = []
    for pos, correct, *words, entropy, rank in zip(*columns, strict=True):
        true, pred = (
            None if token is None else {"id": int(token), "text": plain(str(text)), "prob": number(prob)}
            for token, text, prob in (words[:3], words[3:])
        )
        top = [pred] if correct or true is None else [pred, true]
        said = {"entropy": number(entropy), "margin": None, "rank": rank, "top": top}
        known = true is not None
        found.append({"pos": int(pos) - start, "correct": correct, "known": known, "true": true, "pred": pred} | said)
    return found


def _token(outcome: Mapping[str, Any], which: str) -> dict[str, Any]:
    return {
        "id": outcome[f"{which}_id"],
        "text": plain(str(outcome[f"{which}_token"])),
        "prob": number(outcome[f"{which}_prob"]),
    }


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
