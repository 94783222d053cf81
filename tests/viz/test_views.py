"""Tables say the right numbers; pictures draw the right lines whatever the groups hold."""

import errno
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from decision_traces.analysis.lens.depth import decision_depth, depth_by_choice
from decision_traces.analysis.results import Attribution, LensByChoice, LensTrajectories, TokenPath
from decision_traces.viz import attributions, by_choice, tables, trajectories

PNG = b"\x89PNG\r\n\x1a\n"


def _lens(correct: list[bool | None], stage: str = "hidden") -> LensTrajectories:
    n, true_id = len(correct), np.asarray([-1 if c is None else 2 if c else 3 for c in correct], np.int32)
    prob = np.tile(np.array([[0.1, 0.5, 0.8]], np.float32), (n, 1))
    top = np.tile(np.array([[1, 2, 2]], np.int32), (n, 1))
    entropy = np.tile(np.array([[3.0, 2.0, 1.25]], np.float32), (n, 1))
    logit = np.tile(np.array([[0.0, 1.0, 2.0]], np.float32), (n, 1))
    pred = TokenPath(logit, prob, top)
    true = TokenPath(np.where(true_id[:, None] < 0, np.float32(np.nan), logit), prob / 2, top)
    competitor = TokenPath(logit / 2, prob, top)
    names, said = tuple(f"e{i}" for i in range(n)), np.full(n, 2, np.int32)
    return LensTrajectories(
        stage, names, np.asarray([bool(c) for c in correct]), true_id, said, said, true, pred, competitor,
        top[:, :, None], prob[:, :, None], entropy, entropy, entropy, 0.0,
    )  # fmt: skip


def _lens_by_choice(correct_idx: list[int], pred_idx: list[int]) -> LensByChoice:
    """Two depths; at first all answers are equal (the first of them leads), in the end `pred_idx` has 0.6."""
    n = len(pred_idx)
    probs = np.full((n, 2, 3), 1 / 3, np.float32)
    probs[:, 1] = 0.2
    probs[np.arange(n), 1, pred_idx] = 0.6
    right, given = np.asarray(correct_idx, np.int32), np.asarray(pred_idx, np.int32)
    names = tuple(f"q{i}" for i in range(n))
    return LensByChoice(names, (("A", "B", "C"),) * n, np.log(probs), probs, right, given, right == given, 0.0)


def _attribution(correct: list[bool], *, heads: bool = True) -> Attribution:
    n = len(correct)
    right = np.asarray(correct)
    sign = np.where(right, 1.0, -1.0).astype(np.float32)
    ids, zero = np.zeros(n, np.int32), np.zeros(n, np.float32)
    attn, mlp = np.stack([sign, 2 * sign], axis=1), np.stack([zero, 4 * sign], axis=1)
    split = np.stack([attn * 3, -attn * 2], axis=2) if heads else None
    bias = np.zeros((n, 2), np.float32) if heads else None
    names = tuple(f"e{i}" for i in range(n))
    return Attribution(
        names, right, np.ones(n, bool), ids, ids, sign, attn, mlp, zero + 0.5, split, bias, 8 * sign + 0.5, 0.0, 0.0
    )


def _rows(table: object) -> dict[str, list[str]]:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=220, record=True, file=nowhere)
        console.print(table)
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figures: list[Any] = []
    for module in (attributions, by_choice, trajectories):
        original = module.save
        monkeypatch.setattr(module, "save", lambda f, *a, original=original: (figures.append(f), original(f, *a))[1])
    return figures


def _lines(axis: Any) -> dict[str, list[float]]:
    return {line.get_label(): np.round(np.float64(line.get_ydata()), 4).tolist() for line in axis.lines}


def test_the_table_shows_share_certainty_and_depth() -> None:
    lens = _lens([True, True, True, False])
    rows = _rows(tables.decision_table(lens, decision_depth(lens)))
    assert rows["right"] == ["3 (75.0%)", "0.800", "0.400", "1.250", "1.00", "1.00", "1.00"]
    assert rows["wrong"][0] == "1 (25.0%)"
    assert rows["all"][0] == "4 (100.0%)"
    unknown = _lens([None, None])
    rows = _rows(tables.decision_table(unknown, decision_depth(unknown)))
    assert rows["truth unknown"] == ["2 (100.0%)", "0.800", "0.400", "1.250", "1.00", "1.00", "–"]


def test_certainty_by_choice_is_that_among_the_answers() -> None:
    lens = _lens_by_choice([1, 2, -1], [1, 1, 0])
    rows = _rows(tables.decision_table(lens, depth_by_choice(lens)))
    assert rows["right"] == ["1 (33.3%)", "0.600", "0.600", "0.950", "1.00", "1.00", "1.00"]  # -0.6 ln 0.6 - 0.4 ln 0.2
    assert rows["wrong"] == ["1 (33.3%)", "0.600", "0.200", "0.950", "1.00", "1.00", "–"]
    assert rows["truth unknown"][:3] == ["1 (33.3%)", "0.600", "–"]
    rows = _rows(tables.lens_by_choice_table(lens))
    assert rows["embedding"] == ["33.3%", "0.0%", "0.333", "0.333"]
    assert rows["layer 0"] == ["100.0%", "50.0%", "0.600", "0.400"]


def test_kinds_are_counted_apart() -> None:
    lens = _lens([True, False, True])
    kinds = pd.Series({"e0": "fact", "e1": "fact", "e2": "copy"})
    rows = _rows(tables.kind_table(decision_depth(lens), kinds))
    assert rows["fact"] == ["2", "50.0%", "1.00", "1.00"]
    assert rows["copy"] == ["1", "100.0%", "1.00", "–"]


def test_stages_stand_in_the_order_of_the_model() -> None:
    rows = _rows(tables.lens_table([_lens([True, False, None]), _lens([True, False, None], "post_attn")]))
    assert list(rows) == ["embedding", "attention 0", "layer 0", "attention 1", "layer 1", "attention 2"]
    assert rows["embedding"] == ["0.0%", "0.0%", "0.100", "0.050", "1", "3.000", "3.000"]
    assert rows["layer 1"] == ["100.0%", "50.0%", "0.800", "0.400", "2", "1.250", "1.250"]


def test_attribution_is_shown_right_against_wrong() -> None:
    rows = _rows(tables.attribution_table(_attribution([True, False, False])))
    assert rows["embedding"] == ["+1.000", "-1.000"]
    assert rows["attention 1"] == ["+2.000", "-2.000"] and rows["MLP 1"] == ["+4.000", "-4.000"]
    assert rows["biases and rest"] == ["+0.500", "+0.500"] and rows["logit difference"] == ["+8.500", "-7.500"]
    rows = _rows(tables.head_table(_attribution([True, True, False]), 2))
    assert list(rows) == ["1.0", "1.1"]
    assert rows["1.0"][0] == "+2.000" and rows["1.0"][2] == "66.7% of examples" and rows["1.1"][0] == "-1.333"
    with pytest.raises(ValueError, match="not split by head"):
        tables.head_table(_attribution([True], heads=False))


@pytest.mark.parametrize("correct", [[True, False], [True], [False, False], [None], [True, None]])
def test_trajectories_are_drawn_by_group(correct: list[bool | None], drawn: list[Any], tmp_path: Path) -> None:
    lens = _lens(correct)
    path = trajectories.save_trajectories(lens, decision_depth(lens), tmp_path / "analysis" / "lens.png", "A title")
    assert path.read_bytes()[:8] == PNG
    axes = drawn[0].axes
    names = [n for n, c in (("right", True), ("wrong", False), ("truth unknown", None)) if c in correct]
    assert [label.split(" (")[0] for label in _lines(axes[0])] == names
    assert all(values == pytest.approx([0.1, 0.5, 0.8]) for values in _lines(axes[0]).values())
    lead = {label.split(" (")[0]: values for label, values in _lines(axes[2]).items() if "(" in label}
    assert lead == {name: [0.0, 0.5, 1.0] for name in names}
    assert len(axes[5].lines) == len(names) and axes[5].lines[0].get_ydata().tolist() == [0, 1, 1]


def test_a_lens_by_choice_is_drawn_for_right_and_wrong_answers(drawn: list[Any], tmp_path: Path) -> None:
    path = by_choice.save_lens_by_choice(_lens_by_choice([1, 2, 2], [1, 1, 0]), tmp_path / "choices.png", "A title")
    assert path.read_bytes()[:8] == PNG
    right, wrong, leads = map(_lines, drawn[0].axes)
    assert right["right answer"] == [0.3333, 0.6] and "answer given" not in right
    assert wrong["right answer"] == [0.3333, 0.2] and wrong["answer given"] == [0.3333, 0.6]
    assert wrong["each other answer (mean)"] == [0.3333, 0.2]
    assert leads["right answer"] == [0.0, 0.3333] and leads["answer as in the end"] == [0.3333, 1.0]
    by_choice.save_lens_by_choice(_lens_by_choice([-1, -1], [0, 1]), tmp_path / "unknown.png", "A title")
    unknown, leads = map(_lines, drawn[1].axes)
    assert "right answer" not in unknown and "right answer" not in leads and unknown["answer given"] == [0.3333, 0.6]


@pytest.mark.parametrize("heads", [True, False])
def test_attribution_is_drawn_as_it_grows(heads: bool, drawn: list[Any], tmp_path: Path) -> None:
    result = _attribution([True, True, False], heads=heads)
    assert attributions.save_attribution(result, tmp_path / "a.png", "A title").read_bytes()[:8] == PNG
    running, attention, mlp, *maps = drawn[0].axes
    values = list(_lines(running).values())
    assert values[0] == [1.5, 2.5, 2.5, 4.5, 8.5] and values[1] == [-0.5, -1.5, -1.5, -3.5, -7.5]
    assert [bar.get_height() for bar in attention.patches] == [1.0, 2.0, -1.0, -2.0]
    assert [bar.get_height() for bar in mlp.patches] == [0.0, 4.0, 0.0, -4.0]
    assert attention.get_ylim() == mlp.get_ylim()
    if heads:
        np.testing.assert_allclose(maps[0].images[0].get_array(), [[1, -2 / 3], [2, -4 / 3]], rtol=1e-6)
    else:
        assert maps == []


WORDS = ["$5 or $6", r"$\frac{$", "\x1b]52;c;\x07\u202e", "汉 \N{GRINNING FACE}", "two\nlines", "x" * 2_000_000]
SHOWN = ["$5 or $6", r"$\frac{$", r"\x1b]52;c;\x07\u202e", "汉 \N{GRINNING FACE}", r"two\nlines", "x" * 119 + "…"]


@pytest.mark.parametrize(("title", "shown"), list(zip(WORDS, SHOWN, strict=True)), ids=range(len(WORDS)))
def test_a_picture_writes_its_title_as_it_stands(
    title: str, shown: str, written: Callable[[], list[str]], tmp_path: Path
) -> None:
    lens = _lens_by_choice([1], [1])
    assert by_choice.save_lens_by_choice(lens, tmp_path / "choices.png", title).read_bytes()[:8] == PNG
    assert shown in written()


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    def half(_: Figure, target: Any, **__: Any) -> None:
        with target.open("wb") if isinstance(target, Path) else nullcontext(target) as file:
            file.write(PNG)
            raise OSError(errno.ENOSPC, "No space left on device")

    picture = by_choice.save_lens_by_choice(_lens_by_choice([1], [1]), tmp_path / "choices.png", "a title")
    before = picture.read_bytes()
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space"):
        by_choice.save_lens_by_choice(_lens_by_choice([1], [1]), picture, "another title")
    assert picture.read_bytes() == before and list(tmp_path.iterdir()) == [picture]


def test_no_picture_draws_formulas(written: Callable[[], list[str]], tmp_path: Path) -> None:
    lens = _lens([True, False])
    trajectories.save_trajectories(lens, decision_depth(lens), tmp_path / "lens.png", "$5 or $6")
    attributions.save_attribution(_attribution([True, False]), tmp_path / "attribution.png", "$5 or $6")
    assert written().count("$5 or $6") == 2


def test_a_kind_of_item_is_no_markup() -> None:
    lens = _lens([True])
    assert "[/bold]" in _rows(tables.kind_table(decision_depth(lens), pd.Series({"e0": "[/bold]"})))
