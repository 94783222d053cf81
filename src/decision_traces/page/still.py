"""One example as a still picture: who leads after each layer, and which parts wrote the lead."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decision_traces.errors import UsageError
from decision_traces.page.example import choices, decisions, table_row
from decision_traces.page.results import Lens, by_choice_json, contributions_json, lens_of
from decision_traces.page.runs import PageRun
from decision_traces.store import ExampleKey
from decision_traces.viz.style import BLUE, GREY, VERMILION, as_written, label, new_figure, plain

if TYPE_CHECKING:
    from decision_traces.store import TraceStore

_OTHERS: Final = 3
_NAME: Final = 30
"""Most characters of a token or a choice among others."""


@dataclass(frozen=True, slots=True)
class Still:
    """A picture; a notebook shows it as the value of a cell.

    Attributes:
        png: Its bytes.
        said: What it shows, in a sentence.
    """

    png: bytes
    said: str

    def __repr__(self) -> str:
        """Say what it shows."""
        return self.said

    def _repr_png_(self) -> bytes:
        return self.png


@dataclass(frozen=True, slots=True)
class _Question:
    """Which two are compared: names, ids, and the probabilities of the candidates by depth."""

    target: int
    competitor: int
    names: dict[int, str]
    paths: dict[int, list[float]]
    position: int


@as_written()
def show(store: "TraceStore", example: ExampleKey) -> Still:
    """Draw one example without a server: probabilities by layer, and the contributions where they were computed.

    Args:
        store: The run.
        example: example_id or row.

    Raises:
        UsageError: The analyses that it draws were not run; the message names the command.
        UnknownExampleError: The run has no such example.
    """
    run, row = PageRun("r0", store.results), store.row(example)
    asked = _question(run, row)
    with_parts = "contributions" not in run.missing()
    figure = new_figure(9.6 if with_parts else 5.2, 3.3)
    axes: Any = figure.subplots(1, 2 if with_parts else 1, squeeze=False)[0]
    _trajectories(axes[0], asked)
    if with_parts:
        _parts(axes[1], contributions_json(run, row, asked.position), asked)
    said = label(_said(run, row))
    figure.suptitle(said, x=0.01, ha="left", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Still(buffer.getvalue(), said)


def _question(run: PageRun, row: int) -> _Question:
    values = table_row(run, row)
    offered = choices(run, values)
    missing = run.missing()
    if offered is not None:
        if "by_choice" in missing:
            raise UsageError(f"{missing['by_choice']['why']} {missing['by_choice']['command']}".strip())
        by_choice = np.asarray(by_choice_json(run, row)["probs"])
        ids = [i if run.task.reads_choices else c["id"] for i, c in enumerate(offered)]
        target = next((i for i, c in enumerate(offered) if c["right"]), None)
        target = next(i for i, c in enumerate(offered) if c["given"]) if target is None else target
        competitor = max((i for i in range(len(ids)) if i != target), key=lambda i: offered[i]["logit"])
        names = {ids[i]: f"{c['label']} {c['text']}" for i, c in enumerate(offered)}
        paths = {ids[i]: by_choice[:, i].tolist() for i in range(len(ids))}
        position = 0 if run.task.reads_choices else int(values["answer_pos"]) - int(run.store.spans.start[row])
        return _Question(ids[target], ids[competitor], names, paths, position)
    if "lens" in missing:
        raise UsageError(f"{missing['lens']['why']} {missing['lens']['command']}".strip())
    made = decisions(run, values, int(run.store.spans.start[row]))
    if not made:
        raise UsageError(f"{run.store.example_id(row)} has no prediction: its text has too few tokens.")
    return _tokens(run, lens_of(run, row), made[0]["pos"])


def _tokens(run: PageRun, lens: Lens, position: int) -> _Question:
    slot = int(np.flatnonzero(lens.pos == position)[0])
    ids = lens.candidates[slot]
    order = [k for k in np.argsort(-lens.candidate_probs[-1, slot]) if ids[k] >= 0]
    target = int(ids[0])
    competitor = int(next(ids[k] for k in order if ids[k] != target))
    kept = dict.fromkeys([target, competitor, *(int(ids[k]) for k in order)])
    chosen = list(kept)[: 2 + _OTHERS]
    column = {token: int(np.flatnonzero(ids == token)[0]) for token in chosen}
    paths = {token: lens.candidate_probs[:, slot, column[token]].tolist() for token in chosen}
    words = run.words()
    return _Question(target, competitor, {t: repr(words.get(t, f"#{t}"))[1:-1] for t in chosen}, paths, position)


def _trajectories(axis: Any, asked: _Question) -> None:
    for token, path in asked.paths.items():  # the number first: matplotlib hides labels that begin with "_"
        colour = BLUE if token == asked.target else VERMILION if token == asked.competitor else GREY
        strong = token in {asked.target, asked.competitor}
        axis.plot(path, color=colour, lw=2.2 if strong else 1, marker="o" if token == asked.target else None, ms=4,
                  label=f"{path[-1]:.2f} {label(asked.names[token], _NAME)}")  # fmt: skip
    depths = len(next(iter(asked.paths.values())))
    plain(axis, "Trajectories", "after layer", "probability")
    step = max(1, depths // 10)
    axis.set_xticks(range(0, depths, step), ["emb", *map(str, range(depths - 1))][::step])
    axis.legend(frameon=False, fontsize=8)


def _parts(axis: Any, found: dict[str, Any], asked: _Question) -> None:
    ids = [candidate["id"] for candidate in found["candidates"]]
    values = np.asarray(found["values"])
    lead = values[ids.index(asked.competitor)] - values[ids.index(asked.target)]
    colours = [BLUE if v >= 0 else VERMILION for v in lead]
    axis.bar(range(len(lead)), lead, color=colours, width=0.75)
    axis.step(range(len(lead)), np.cumsum(lead), where="mid", color="#333333", lw=1)
    axis.axhline(0, color=GREY, lw=0.8)
    names = [
        label(p, _NAME).replace("attn ", "a").replace("mlp ", "m").replace("remainder", "bias") for p in found["parts"]
    ]
    axis.set_xticks(range(len(lead)), names, rotation=90, fontsize=7)
    target, competitor = (label(asked.names[token], _NAME) for token in (asked.target, asked.competitor))
    unit = "logits" if found["logit_cap"] is None else "logits before the cap"
    plain(axis, f"Contributions to {target} over {competitor}: {lead.sum():+.2f}", "", unit)


def _said(run: PageRun, row: int) -> str:
    values = table_row(run, row)
    offered = choices(run, values)
    if offered is not None:
        given = next(c for c in offered if c["given"])
        right = next((c for c in offered if c["right"]), None)
        verdict = f"answers {given['label']} {given['text']} ({given['prob']:.2f})"
        if right is None or right is given:
            return f"{run.store.example_id(row)}: {verdict}"
        return f"{run.store.example_id(row)}: {verdict}; right is {right['label']} {right['text']}"
    made = decisions(run, values, 0)[0]
    went_on = f"; {run.task.words.truth} {made['true']['text']!r}" if made["correct"] is False else ""
    return f"{run.store.example_id(row)}: says {made['pred']['text']!r} ({made['pred']['prob']:.2f}){went_on}"
