"""Results as tables for the terminal."""

import pandas as pd
from rich.table import Table

from decision_traces.analysis.results import DecisionDepth, LensTrajectories


def decision_table(lens: LensTrajectories, depth: DecisionDepth) -> Table:
    """Return how right and wrong predictions differ: certainty, and when they were made."""
    frame = depth.to_frame().assign(
        entropy=lens.entropy[:, -1], final_prob=lens.final_prob[:, -1], true_prob=lens.true_prob[:, -1]
    )
    table = Table(title="Right against wrong predictions (means)", title_justify="left")
    for heading in ("predictions", "share", "prob. of predicted", "prob. of actual", "entropy (nats)"):
        table.add_column(heading, justify="left" if heading == "predictions" else "right")
    table.add_column(f"stable from layer (of {depth.n_layers})", justify="right")
    table.add_column("flips on the way", justify="right")
    for name, part in (
        ("right", frame[frame["correct"]]),
        ("wrong", frame[~frame["correct"]]),
        ("all", frame),
    ):
        table.add_row(name, *_means(part, len(frame)), end_section=name == "wrong")
    return table


def _means(part: pd.DataFrame, total: int) -> list[str]:
    share = f"{len(part)} ({len(part) / max(1, total):.1%})"
    if part.empty:
        return [share, *["–"] * 5]
    mean = part[["final_prob", "true_prob", "entropy", "stable_from", "flips"]].mean()
    return [
        share,
        f"{mean['final_prob']:.3f}",
        f"{mean['true_prob']:.3f}",
        f"{mean['entropy']:.3f}",
        f"{mean['stable_from']:.2f}",
        f"{mean['flips']:.2f}",
    ]


def kind_table(depth: DecisionDepth, kinds: pd.Series) -> Table:
    """Return accuracy and decision depth by kind of item.

    Args:
        depth: The decisions.
        kinds: Kind of item by example_id.
    """
    frame = depth.to_frame().assign(kind=lambda f: f["example_id"].map(kinds))
    table = Table(title="By kind of item", title_justify="left")
    stable = f"stable from layer (of {depth.n_layers})"
    for heading in ("kind", "items", "right", f"{stable} if right", f"{stable} if wrong"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, part in frame.groupby("kind", sort=True):
        by = [part.loc[part["correct"] == truth, "stable_from"] for truth in (True, False)]
        depths = ["–" if s.empty else f"{s.mean():.2f}" for s in by]
        table.add_row(str(kind), str(len(part)), f"{part['correct'].mean():.1%}", *depths)
    return table
