"""Head statistics of whole runs against loops over the arrays as they were written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import CHOICES, DECODER, TinyRun, build_run

from decision_traces import TraceStore
from decision_traces.analysis.attention import statistics as attention
from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES
from decision_traces.analysis.attention.statistics import AttentionStatistics, HeadMeans, attention_statistics
from decision_traces.errors import DataError, NotCapturedError, UsageError


def previous_mass(matrix: np.ndarray, begin: int, n: int) -> float:
    rows = [float(matrix[begin + q, begin + q - 1]) for q in range(1, n)]
    return sum(rows) / len(rows) if rows else float("nan")


def few_tokens(arrays: dict, table: pd.DataFrame) -> None:
    """Make ids repeat, so that there is something to be alike."""
    table["input_ids"] = [
        [[i % 2 for i in c] for c in ids] if isinstance(ids[0], list) else [i % 2 for i in ids]
        for ids in table["input_ids"]
    ]


def same_mass(matrix: np.ndarray, ids: list[int], n: int) -> float:
    rows = []
    for q in range(n):
        alike = [k for k in range(q) if ids[k] == ids[q]]
        if alike:
            rows.append(sum(float(matrix[q, k]) for k in alike))
    return sum(rows) / len(rows) if rows else float("nan")


@pytest.mark.parametrize("layout", ["sharded", "v3", "v2"])
def test_a_decoder_run_head_by_head(layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(DECODER, layout=layout, capture=("attn",))
    written = build_run(tmp_path / "run", run, few_tokens)["dec_self_attn"]
    monkeypatch.setattr(attention, "rows_per_step", lambda *_: 2)  # parts that do not divide the run
    steps: list[tuple[int, int]] = []
    store = TraceStore(tmp_path / "run")
    got = attention_statistics(store, progress=lambda done, total: steps.append((done, total)))
    assert got.values.shape == (6, 5, run.n_layers, run.n_heads) and got.choice is None
    ids = store.tokens["input_ids"]
    for row, n in enumerate(run.lengths):
        for layer in range(run.n_layers):
            for head in range(run.n_heads):
                matrix, at = written[row, layer, head], (row, layer, head)
                np.testing.assert_allclose(got.figure("previous_mass")[at], previous_mass(matrix, 0, n), rtol=1e-5)
                np.testing.assert_allclose(got.figure("same_mass")[at], same_mass(matrix, list(ids[row]), n), rtol=1e-5)
    assert np.isnan(got.values[:, 2]).all()  # one token
    assert steps[-1] == (15, 15) and [s[0] for s in steps] == sorted(s[0] for s in steps)
    frame = got.to_frame()
    assert len(frame) == 5 * 3 * 4
    cell = frame[(frame["example_id"] == "tiny-validation-000003") & (frame["layer"] == 2) & (frame["head"] == 1)]
    assert cell["previous_mass"].item() == pytest.approx(previous_mass(written[3, 2, 1], 0, 6), rel=1e-5)


def test_padding_is_never_looked_at(tmp_path: Path) -> None:
    def dirty(arrays: dict, table: pd.DataFrame) -> None:
        few_tokens(arrays, table)
        for row, n in enumerate(DECODER.lengths):
            arrays["dec_self_attn"][row, :, :, n:], arrays["dec_self_attn"][row, :, :, :, n:] = 7, 7

    run = replace(DECODER, capture=("attn",))
    build_run(tmp_path / "clean", run, few_tokens)
    build_run(tmp_path / "dirty", run, dirty)
    clean, soiled = (attention_statistics(TraceStore(tmp_path / name)).values for name in ("clean", "dirty"))
    np.testing.assert_array_equal(clean, soiled)


def test_a_run_padded_on_the_left_is_measured_at_its_tokens(tmp_path: Path) -> None:
    lengths, t = (3, 5), 6
    run = TinyRun(lengths=lengths, n_layers=1, n_heads=1, n_positions=t, capture=("attn",), layout="v3")

    def shift(arrays: dict, table: pd.DataFrame) -> None:
        for row, n in enumerate(lengths):
            arrays["dec_self_attn"][row] = np.roll(arrays["dec_self_attn"][row], (t - n, t - n), axis=(-2, -1))
            for column in ("input_ids", "attention_mask", "tokens", "offset_mapping"):
                values = table.at[row, column]
                table.at[row, column] = values[n:] + values[:n]

    written = build_run(tmp_path / "run", run, shift)["dec_self_attn"]
    got = attention_statistics(TraceStore(tmp_path / "run"))
    wanted = [previous_mass(written[row, 0, 0], t - n, n) for row, n in enumerate(lengths)]
    np.testing.assert_allclose(got.figure("previous_mass")[:, 0, 0], wanted, rtol=1e-5)


def test_a_choice_run_has_a_row_per_choice_and_its_mean_per_example(tmp_path: Path) -> None:
    run = replace(CHOICES, capture=("attn",))
    written = build_run(tmp_path / "run", run, few_tokens)["enc_mc_attn"]
    got = attention_statistics(TraceStore(tmp_path / "run"))
    assert got.row.tolist() == [0, 0, 1, 1, 2, 2] and got.choice is not None
    assert got.choice.tolist() == [0, 1, 0, 1, 0, 1]
    each = np.array(
        [[previous_mass(written[i, c, 1, 2], 0, n) for c, n in enumerate(row)] for i, row in enumerate(run.lengths)]
    )
    np.testing.assert_allclose(got.figure("previous_mass")[:, 1, 2], each.ravel(), rtol=1e-5)
    # The third example's first choice is one token long: its mean is that of the other choice.
    means = [each[0].mean(), each[1].mean(), each[2, 1]]
    merged = got.by_example()
    assert merged.row.tolist() == [0, 1, 2] and merged.choice is None and len(set(merged.example_id)) == 3
    np.testing.assert_allclose(merged.figure("previous_mass")[:, 1, 2], means, rtol=1e-5)
    heads = got.per_head()
    np.testing.assert_allclose(heads.figure("previous_mass")[1, 2], np.mean(means), rtol=1e-5)
    # An encoder sees both ways: the first row counts, and so does what lies ahead.
    n, matrix = run.lengths[0][0], written[0, 0, 0, 0].astype(np.float64)
    distance = np.mean([sum(matrix[q, k] * abs(q - k) for k in range(n)) for q in range(n)])
    np.testing.assert_allclose(got.figure("attn_distance")[0, 0, 0], distance, rtol=1e-4)
    assert list(got.to_frame().columns[:4]) == ["example_id", "choice", "layer", "head"]


def test_heads_are_means_over_examples_that_could_be_measured() -> None:
    values = np.zeros((6, 3, 1, 2), np.float32)
    values[1, :, 0, 0], values[1, :, 0, 1] = [1.0, np.nan, 3.0], np.nan
    heads = AttentionStatistics(np.arange(3), ("a", "b", "c"), None, values).per_head()
    assert heads.figure("attn_distance")[0, 0] == 2.0 and np.isnan(heads.figure("attn_distance")[0, 1])
    assert heads.n_examples[1].tolist() == [[2, 0]] and heads.n_examples[0].tolist() == [[3, 3]]
    frame = heads.to_frame()
    assert frame[["layer", "head", "n_attn_distance"]].to_numpy().tolist() == [[0, 0, 2], [0, 1, 0]]
    assert set(ATTENTION_FIGURES) < set(frame.columns)


def test_what_a_run_lacks_is_said(tmp_path: Path) -> None:
    build_run(tmp_path / "hidden", replace(DECODER, capture=("hidden",)))
    with pytest.raises(NotCapturedError, match="`attn` among the words of --capture"):
        attention_statistics(TraceStore(tmp_path / "hidden"))
    build_run(tmp_path / "choices", replace(CHOICES, capture=("hidden",)))
    with pytest.raises(NotCapturedError, match=r"no enc_mc_attn: .*`attn` among the words of --capture"):
        attention_statistics(TraceStore(tmp_path / "choices"))
    build_run(tmp_path / "attn", replace(DECODER, capture=("attn",)))
    with pytest.raises(UsageError, match=r"'dec_hidden': they are made of dec_self_attn"):
        attention_statistics(TraceStore(tmp_path / "attn"), "dec_hidden")
    build_run(
        tmp_path / "no_ids",
        replace(DECODER, capture=("attn",), layout="v3"),
        lambda arrays, table: table.pop("input_ids"),
    )
    with pytest.raises(DataError, match="no input_ids"):
        attention_statistics(TraceStore(tmp_path / "no_ids"))


def test_results_of_different_sizes_are_refused() -> None:
    values = np.zeros((6, 2, 1, 1), np.float32)
    with pytest.raises(ValueError, match="need 2 entries"):
        AttentionStatistics(np.arange(2), ("a",), None, values)
    with pytest.raises(ValueError, match="6 figures"):
        AttentionStatistics(np.arange(2), ("a", "b"), None, values[:5])
    with pytest.raises(ValueError, match="6 figures in front"):
        HeadMeans(values[:5, 0], np.zeros((5, 1, 1), np.int64))
