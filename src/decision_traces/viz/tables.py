"""Results of the lens, of attribution and of the lens by choice as tables for the terminal."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from decision_traces.analysis.results import Attribution, DecisionDepth, LensByChoice, LensTrajectories
from decision_traces.printable import printable
from decision_traces.viz.groups import grouped

_NONE = "–"


def _new_table(title: str, *headings: str) -> Table:
    """Return a table whose first column is left and whose others are right."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return table


def decision_table(lens: LensTrajectories | LensByChoice, depth: DecisionDepth) -> Table:
    """Return how right and wrong predictions differ: certainty, and when they were made.

    Args:
        lens: The logit lens, for certainty over the vocabulary; the lens by choice, for that among the answers.
        depth: The decisions.
    """
    frame = depth.to_frame().assign(**_certainty(lens))
    among = " among the answers" if isinstance(lens, LensByChoice) else ""
    table = _new_table(
        f"Right against wrong predictions{among} (means)",
        "predictions", "share", "prob. of predicted", "prob. of actual", "entropy (nats)",
        f"stable from layer (of {depth.n_layers})", "flips on the way", "truth ahead from layer",
    )  # fmt: skip
    for group, mask in grouped(depth.correct, depth.known):
        table.add_row(group.name, *_means(frame[mask], len(frame)))
    table.add_section()
    table.add_row("all", *_means(frame, len(frame)))
    return table


def _certainty(lens: LensTrajectories | LensByChoice) -> dict[str, np.ndarray]:
    """Return what the model is sure of in the end."""
    if isinstance(lens, LensTrajectories):
        return {"entropy": lens.entropy[:, -1], "pred_prob": lens.pred.prob[:, -1], "true_prob": lens.true.prob[:, -1]}
    last, every = lens.probs[:, -1], np.arange(len(lens.pred_idx))
    logs = np.log(last, out=np.zeros_like(last), where=last > 0)
    true = np.where(lens.known, last[every, lens.correct_idx], np.nan)
    return {"entropy": -(last * logs).sum(1), "pred_prob": last[every, lens.pred_idx], "true_prob": true}


def _means(part: pd.DataFrame, total: int) -> list[str]:
    mean = part[["pred_prob", "true_prob", "entropy", "stable_from", "flips", "ahead_from"]].mean()
    share = f"{len(part)} ({len(part) / max(1, total):.1%})"
    return [share, *(_number(mean.iloc[i], 3 if i < 3 else 2) for i in range(6))]


def _number(value: Any, digits: int) -> str:
    """Return a number, or a dash for NaN and pandas' NA."""
    return _NONE if pd.isna(value) else f"{value:.{digits}f}"


def kind_table(depth: DecisionDepth, kinds: pd.Series) -> Table:
    """Return accuracy and decision depth by kind of item.

    Args:
        depth: The decisions.
        kinds: Kind of item by example_id.
    """
    frame = depth.to_frame().assign(kind=lambda f: f["example_id"].map(kinds))
    stable = f"stable from layer (of {depth.n_layers})"
    table = _new_table("By kind of item", "kind", "items", "right", f"{stable} if right", f"{stable} if wrong")
    for kind, part in frame.groupby("kind", sort=True):
        by = [part.loc[part["correct"].eq(truth).fillna(value=False), "stable_from"] for truth in (True, False)]
        right = part["correct"].mean()
        share = _NONE if pd.isna(right) else f"{right:.1%}"
        table.add_row(Text(printable(str(kind))), str(len(part)), share, *(_number(s.mean(), 2) for s in by))
    return table


def lens_table(lenses: Iterable[LensTrajectories]) -> Table:
    """Return what the model would say after each layer, over all examples: one row per state of the stream.

    The states of all stages stand in the order of the way through the model.
    """
    table = _new_table(
        "If the model ended here",
        "after", "predicts as in the end", "right", "prob. of predicted", "prob. of actual", "rank of actual",
        "entropy (nats)", "KL to the end (nats)",
    )  # fmt: skip
    rows = [
        (depth, lens.stage, _state(lens, index)) for lens in lenses for index, depth in enumerate(lens.depth.tolist())
    ]
    for depth, stage, cells in sorted(rows, key=lambda row: row[:2]):
        table.add_row(_state_name(depth, stage), *cells)
    return table


def _state_name(depth: float, stage: str) -> str:
    if stage == "post_attn":
        return f"attention {int(depth)}"
    return "embedding" if depth == 0 else f"layer {int(depth) - 1}"


def _state(lens: LensTrajectories, index: int) -> list[str]:
    top, known = lens.top_id[:, index], lens.known
    right = f"{(top == lens.true_id)[known].mean():.1%}" if known.any() else _NONE
    rank = f"{np.median(lens.true.rank[known, index]):.0f}" if known.any() else _NONE
    means = (lens.pred.prob[:, index].mean(), lens.true.prob[known, index].mean() if known.any() else np.nan)
    return [
        f"{(top == lens.pred_id).mean():.1%}", right, *(_number(m, 3) for m in means), rank,
        f"{lens.entropy[:, index].mean():.3f}", f"{abs(lens.kl_to_final[:, index].mean()):.3f}",
    ]  # fmt: skip


def lens_by_choice_table(by_choice: LensByChoice) -> Table:
    """Return who leads among the answers after each layer, over all questions."""
    table = _new_table(
        "If the model ended here, among the answers",
        "after", "answers as in the end", "right", "prob. of the answer given", "prob. of the right answer",
    )  # fmt: skip
    every, leader, known = np.arange(len(by_choice.pred_idx)), by_choice.logits.argmax(2), by_choice.known
    pred_probs = by_choice.probs[every, :, by_choice.pred_idx]
    for depth in range(by_choice.n_layers + 1):
        right, true = _NONE, _NONE
        if known.any():
            right = f"{(leader[:, depth] == by_choice.correct_idx)[known].mean():.1%}"
            true = f"{by_choice.probs[every, depth, by_choice.correct_idx][known].mean():.3f}"
        same = f"{(leader[:, depth] == by_choice.pred_idx).mean():.1%}"
        table.add_row(_state_name(float(depth), "hidden"), same, right, f"{pred_probs[:, depth].mean():.3f}", true)
    return table


def attribution_table(result: Attribution) -> Table:
    """Return what each part adds to the lead of the target, right against wrong, means in logits."""
    groups = grouped(result.correct, result.known)
    headings = [f"{group.name} ({mask.sum()})" for group, mask in groups]
    table = _new_table("Who pushes the target ahead of its competitor (mean logits)", "part", *headings)

    def row(name: str, values: np.ndarray) -> None:
        table.add_row(name, *(f"{values[mask].mean():+.3f}" for _, mask in groups))

    row("embedding", result.embed)
    for layer in range(result.n_layers):
        row(f"attention {layer}", result.attn[:, layer])
        row(f"MLP {layer}", result.mlp[:, layer])
    row("biases and rest", result.remainder)
    table.add_section()
    row("logit difference" if result.logit_cap is None else "logit difference before the cap", result.difference)
    return table


def head_table(result: Attribution, top_k: int = 8) -> Table:
    """Return the heads that push most for or against the target, over all examples.

    Args:
        result: The attribution, split by head.
        top_k: How many heads.

    Raises:
        ValueError: Attention was not split by head.
    """
    if result.heads is None:
        raise ValueError("attention was not split by head")
    means, spread = result.heads.mean(0), result.heads.std(0)
    table = _new_table("Heads that push most", "head", "mean (logits)", "spread (logits)", "helps in")
    order = np.argsort(-np.abs(means), axis=None)[:top_k]
    for layer, head in zip(*np.unravel_index(order, means.shape), strict=True):
        helps = (result.heads[:, layer, head] > 0).mean()
        table.add_row(
            f"{layer}.{head}", f"{means[layer, head]:+.3f}", f"{spread[layer, head]:.3f}", f"{helps:.1%} of examples"
        )
    return table
