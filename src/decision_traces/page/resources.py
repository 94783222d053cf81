"""Everything the page asks for, as bytes: the server answers with it, and a bundle writes it to files."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces._version import __version__
from decision_traces.errors import DamagedRunError, SelectionError, UsageError
from decision_traces.format.analyses import CONTRIBUTION_GRID, LENS_GRID
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.page import example, results, slices, snippets
from decision_traces.page.runs import ROWS_PER_PART, VALUES_PER_PART, PageRun
from decision_traces.page.text import plain
from decision_traces.store import doubts

_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
_SNIPPET: Final = 160
_MOST_QUERY: Final = 200


@dataclass(frozen=True, slots=True)
class Resource:
    """One answer."""

    body: bytes
    media_type: str = _JSON


def as_json(value: Any) -> Resource:
    """Return a value as JSON."""
    return Resource(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())


def as_bytes(body: bytes) -> Resource:
    """Return bytes as they are."""
    return Resource(body, _BYTES)


def runs(opened: Sequence[PageRun], *, bundle: bool = False, exact: bool = True) -> Resource:
    """Return the runs the page may show; `exact`: whether attention can be had as numbers."""
    return as_json(
        {
            "version": __version__,
            "bundle": bundle,
            "exact": exact,
            "runs": [{"key": run.key, "run_id": run.run_id} for run in opened],
        }
    )


def meta(run: PageRun, n: int | None = None) -> Resource:
    """Return what a run is, what it has, what is missing, and its colour scales."""
    about, store, figures = run.store.about, run.store, run.figures  # what is damaged turns out when it is read
    grids = {"lens": LENS_GRID, "contributions": CONTRIBUTION_GRID}
    groups = {name: run.grid(grid) for name, grid in grids.items()}
    place = run.place
    folders = (run.run_dir, place.folder)  # a bundle goes to others, to whom the folders here say nothing
    path, results = (str(folder.resolve()) if n is None else folder.name for folder in folders)

    def told(words: str) -> str:
        return words if n is None else words.replace(str(run.run_dir), path).replace(str(place.folder), results)

    return as_json(
        {
            "key": run.key,
            "run_id": run.run_id,
            "path": path,
            "python": snippets.opening(path, None if place.out is None else results),
            **{name: getattr(about, name) for name in ("model", "dataset", "split", "capture", "dtype")},
            "task": _task(run),
            "n": store.n if n is None else min(n, store.n),
            "T": store.T,
            "L": store.L,
            "H": store.H,
            "attention": run.attention_axes(),
            **{name: None if group is None else dict(group.attrs) for name, group in groups.items()},
            "missing": {panel: {k: told(v) for k, v in said.items()} for panel, said in run.missing().items()},
            "partial": {name: told(run.only_decisions(grid)) for name, grid in grids.items()},
            "figures": [figure.summary() for figure in figures],
            "rows_per_part": ROWS_PER_PART,
            "values_per_part": VALUES_PER_PART,
            "uncertified": doubts(about),
        }
    )


def _task(run: PageRun) -> dict[str, Any]:
    """Return what the page needs to know of the kind of decision; see `page/src/task.ts`."""
    task = run.task
    return {
        "name": task.objective,
        "choices": task.choices,
        "n_choices": run.store.n_choices if task.reads_choices else None,
        "fills_gaps": task.fills_gaps,
        "list_from_end": task.list_row.from_end,
        "words": {name: getattr(task.words, name) for name in ("tokens", "where", "truth")},
    }


def rows(run: PageRun, part: int, n: int | None = None) -> Resource:
    """Return names and texts of some examples, for the list.

    Raises:
        SelectionError: There is no such part.
    """
    count = run.store.n if n is None else n
    part = _checked_part(part, max(1, -(-count // ROWS_PER_PART)))
    table = run.listed
    some = table.slice(part * ROWS_PER_PART, min(ROWS_PER_PART, count - part * ROWS_PER_PART))
    found: dict[str, Any] = {"id": [str(i) for i in _listed(some, "example_id").to_pylist()]}
    shown = run.task.list_row
    found["text"] = [_snippet(t, end=shown.from_end) for t in _listed(some, shown.text).to_pylist()]
    for name, source in shown.columns(run.kinds).items():
        if source in some.column_names:
            found[name] = [None if t is None else plain(str(t)) for t in some.column(source).to_pylist()]
    return as_json(found)


def _listed(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column that the list cannot do without, as texts.

    Raises:
        DamagedRunError: It is not there.
    """
    if name not in table.column_names:
        raise DamagedRunError(f"The list needs a column {name}; {TOKENS_FILE} has {', '.join(table.column_names)}.")
    return pc.cast(table.column(name), pa.string())


def _checked_part(part: int, parts: int) -> int:
    """Return the number of a part.

    Raises:
        SelectionError: There is no such part.
    """
    if not 0 <= part < parts:
        raise SelectionError(f"No part {part}: there are {parts}, counted from 0.")
    return part


def _snippet(text: str | None, *, end: bool) -> str:
    """Return the end of a text, where the prediction is made, or its beginning."""
    text = " ".join(str(text or "")[-4 * _SNIPPET :].split()) if end else " ".join(str(text or "").split())
    if len(text) <= _SNIPPET:
        return text
    return "…" + text[-_SNIPPET:] if end else text[:_SNIPPET] + "…"


def column(run: PageRun, name: str, part: int, n: int | None = None) -> Resource:
    """Return one figure of some examples as float32.

    Raises:
        UsageError: There is no such figure.
        SelectionError: There is no such part.
    """
    figure = next((f for f in run.figures if f.name == name), None)
    if figure is None:
        raise UsageError(f"No figure {name!r}: this run has {', '.join(f.name for f in run.figures)}.")
    values = figure.values[:n]
    part = _checked_part(part, max(1, -(-len(values) // VALUES_PER_PART)))
    return as_bytes(values[part * VALUES_PER_PART : (part + 1) * VALUES_PER_PART].astype("<f4").tobytes())


def search(run: PageRun, query: str) -> Resource:
    """Return which examples contain a text, upper and lower case alike, as one bit each.

    Raises:
        UsageError: The text is too long.
    """
    if len(query) > _MOST_QUERY:
        raise UsageError(f"q: a text of up to {_MOST_QUERY} characters, got {len(query)}.")
    table = run.listed
    name = run.task.list_row.search if run.task.list_row.search in table.column_names else "text"
    found = pc.fill_null(pc.match_substring(_listed(table, name), query, ignore_case=True), False)
    return as_bytes(np.packbits(found.to_numpy(), bitorder="little").tobytes())


def row(run: PageRun, example_id: str) -> Resource:
    """Return the row of an example_id."""
    return as_json({"row": run.row(example_id)})


def tokens(run: PageRun, at: int, choice: int) -> Resource:
    """Return the tokens and the decision of an example (choice)."""
    return as_json(example.tokens_json(run, example.checked_row(run, at), example.checked_choice(run, choice)))


def outcomes(run: PageRun, at: int) -> Resource:
    """Return the outcome at every position of an example; null where the run did not keep it."""
    return as_json(example.outcomes_json(run, example.checked_row(run, at)))


def lens(run: PageRun, at: int) -> Resource:
    """Return the shape of an example's lens."""
    return as_json(results.lens_json(run, example.checked_row(run, at)))


def lens_values(run: PageRun, at: int, statistic: str) -> Resource:
    """Return one statistic of an example's lens as JSON."""
    return as_json(results.lens_values(run, example.checked_row(run, at), statistic))


def lens_block(run: PageRun, at: int, block: int) -> Resource:
    """Return the numbers of some states of an example's lens."""
    return as_bytes(results.lens_block(run, example.checked_row(run, at), block))


def contributions(run: PageRun, at: int, position: int) -> Resource:
    """Return the contributions at one position of an example."""
    return as_json(results.contributions_json(run, example.checked_row(run, at), position))


def by_choice(run: PageRun, at: int) -> Resource:
    """Return the lens by choice of an example."""
    return as_json(results.by_choice_json(run, example.checked_row(run, at)))


def thumbs(run: PageRun, at: int, choice: int, layer: int) -> Resource:
    """Return all heads of a layer, small, as bytes."""
    values, layout = slices.layer_of(run, example.checked_row(run, at), example.checked_choice(run, choice), layer)
    return as_bytes(slices.drawn(values, layout.thumb_pool).tobytes())


def head_drawn(run: PageRun, at: int, choice: int, layer: int, head: int) -> Resource:
    """Return one head's attention as bytes."""
    values, layout = slices.head_of(run, example.checked_row(run, at), example.checked_choice(run, choice), layer, head)
    return as_bytes(slices.drawn(values, layout.pool).tobytes())


def head_values(run: PageRun, at: int, choice: int, layer: int, head: int, block: int) -> Resource:
    """Return some rows of one head's attention as float16."""
    values, layout = slices.head_of(run, example.checked_row(run, at), example.checked_choice(run, choice), layer, head)
    return as_bytes(values[slices.block_of_rows(layout, block)].astype("<f2").tobytes())


def head_json(run: PageRun, at: int, choice: int, layer: int, head: int, block: int) -> Resource:
    """Return some rows of one head's attention as JSON."""
    at, choice = example.checked_row(run, at), example.checked_choice(run, choice)
    values, layout = slices.head_of(run, at, choice, layer, head)
    some = slices.block_of_rows(layout, block)
    return as_json(
        {
            "queries": layout.queries[some].tolist(),
            "attention": [[example.number(v, 3) for v in line] for line in values[some].astype(np.float32)],
            "python": snippets.attention(run, at, choice, layer, head),
        }
    )


Found = Iterator[tuple[str, Callable[[], Resource]]]


def bundle_paths(run: PageRun, n: int, *, exact: bool = True) -> Found:
    """Yield every path of a run that a static page asks for, and what stands there, of the first n examples.

    Args:
        run: The run.
        n: How many examples.
        exact: Whether to give attention as numbers, and not only as it is drawn.
    """
    run.check_results()  # what is damaged is left out whole
    yield "meta.json", partial(meta, run, n)
    for part in range(-(-n // ROWS_PER_PART)):
        yield f"rows/{part}.json", partial(rows, run, part, n)
    for figure in run.figures:
        for part in range(-(-n // VALUES_PER_PART)):
            yield f"columns/{figure.name}/{part}.bin", partial(column, run, figure.name, part, n)
    for at in range(n):
        for path, make in (*_of_example(run, at), *_of_choices(run, at, exact=exact)):
            yield f"e/{at}/{path}", make


def _of_example(run: PageRun, at: int) -> Found:
    yield "outcomes.json", partial(outcomes, run, at)
    if run.grid(LENS_GRID) is not None:
        found = results.lens_of(run, at)
        yield "lens.json", partial(lens, run, at)
        for block in range(-(-found.statistics["prob"].size // found.states_per_block)):
            yield f"lens/{block}.bin", partial(lens_block, run, at, block)
        for statistic in results.STATISTICS:
            yield f"lens/{statistic}.json", partial(lens_values, run, at, statistic)
    if run.grid(CONTRIBUTION_GRID) is not None:
        for position in results.contribution_positions(run, at):
            yield f"contributions/{position}.json", partial(contributions, run, at, position)
    if run.task.choices and "by_choice" not in run.missing():
        yield "by_choice.json", partial(by_choice, run, at)


def _of_choices(run: PageRun, at: int, *, exact: bool) -> Found:
    axes = run.attention_axes() or {"layers": [], "heads": []}
    for choice in range((run.store.n_choices or 1) if run.task.reads_choices else 1):
        yield f"c{choice}/tokens.json", partial(tokens, run, at, choice)
        layout = slices.attention_layout(run, at, choice)
        n_blocks = 0 if layout is None else layout.n_blocks
        for layer in axes["layers"]:
            yield f"c{choice}/attn/{layer}/thumbs.u8", partial(thumbs, run, at, choice, layer)
            for head in axes["heads"]:
                yield f"c{choice}/attn/{layer}/{head}.u8", partial(head_drawn, run, at, choice, layer, head)
                for block in range(n_blocks if exact else 0):
                    path = f"c{choice}/attn/{layer}/{head}/{block}.f16"
                    yield path, partial(head_values, run, at, choice, layer, head, block)
