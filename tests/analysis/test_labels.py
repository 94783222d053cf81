"""Columns as labels: classes, numbers, and what is refused; probes and correlations of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.runs import TinyRun, build_run

from decision_traces import TraceStore
from decision_traces.analysis.comparison.correlation import correlate
from decision_traces.analysis.probing.correctness import cross_validate, cross_validate_number, even_subsample
from decision_traces.analysis.probing.label import probe_label
from decision_traces.analysis.probing.labels import labels_of
from decision_traces.errors import NotCapturedError, UsageError

N, D = 60, 8
KIND = np.array(["a", "b", "c"])[np.arange(N) % 3]


def labelled(folder: Path, *capture: str) -> TraceStore:
    """A run whose states at the answer know the kind and the number from depth 2 on."""

    def alter(arrays: dict, table: pd.DataFrame) -> None:
        rng = np.random.default_rng(0)
        table["kind"], table["even"] = KIND, np.arange(N) % 2 == 0
        table["stars"], table["weight"] = np.arange(N) % 4, rng.random(N)
        table["weight_text"] = [f"{w:.6f}" for w in table["weight"]]
        table["one"], table["name"] = "x", [f"n{i}" for i in range(N)]
        table["gap"] = [None, *(["u", "v"] * N)[: N - 1]]
        position = table["n_tokens"].to_numpy() - 2
        states = [("dec_hidden", depth, depth) for depth in range(4)] if "hidden" in capture else []
        if "resid" in capture:
            states += [("dec_res_pre_attn", layer, layer) for layer in range(3)] + [("dec_res_post_mlp", 2, 3)]
        for name, index, depth in states:
            noise = rng.normal(size=(N, D))
            if depth >= 2:
                noise[:, :3] += 4 * (KIND[:, None] == np.array(["a", "b", "c"]))
                noise[:, 4] = 30 * table["weight"]
            arrays[name][np.arange(N), index, position] = noise

    tiny = TinyRun(
        lengths=tuple(3 + i % 4 for i in range(N)), n_layers=3, n_positions=6, d_model=D, dtype="float32", links=False,
        capture=capture,
    )  # fmt: skip
    build_run(folder, tiny, alter)
    return TraceStore(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return labelled(tmp_path_factory.mktemp("labels") / "run", "hidden")


def test_columns_are_classes_or_numbers(store: TraceStore) -> None:
    assert labels_of(store, "kind").sizes == {"a": 20, "b": 20, "c": 20}
    assert labels_of(store, "even").classes == ("true", "false")
    assert labels_of(store, "stars").classes == ("0", "1", "2", "3")
    for column in ("weight", "weight_text"):
        got = labels_of(store, column)
        assert got.classes == ()
        np.testing.assert_allclose(got.value, store.tokens["weight"], atol=1e-6)
    gap = labels_of(store, "gap")
    assert gap.row.tolist() == list(range(1, N)) and gap.sizes == {"u": 30, "v": 29}
    groups, inside = labels_of(store, "kind").contrasts()[1]
    assert groups == ("b", "the rest") and inside.tolist() == (KIND == "b").tolist()
    (groups, inside), = labels_of(store, "even").contrasts()  # fmt: skip
    assert groups == ("true", "false") and inside.tolist() == (np.arange(N) % 2 == 0).tolist()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("nothing", r"nothing is no column of tokens.parquet; those that do: .*kind, even, stars"),
        ("tokens", "tokens holds no labels; those that do: "),
        ("one", "one is 'x' in all 60 examples that have it; there is nothing to tell apart"),
        ("name", "name has 60 different values in 60 examples; at most 24 groups can be compared"),
    ],
)
def test_what_are_no_labels_is_refused(column: str, said: str, store: TraceStore) -> None:
    with pytest.raises(UsageError, match=said):
        labels_of(store, column)


@pytest.mark.parametrize("capture", ["hidden", "resid"])
def test_a_probe_finds_classes_and_numbers_where_they_are(capture: str, tmp_path: Path) -> None:
    run = labelled(tmp_path / "run", capture)
    kind = probe_label(run, labels_of(run, "kind"), shuffles=2)
    assert (kind.measure, kind.sizes) == ("balanced accuracy", {"a": 20, "b": 20, "c": 20})
    assert kind.chance == pytest.approx(1 / 3)
    assert (kind.score[2:].mean(1) > 0.9).all() and (kind.score[:2].mean(1) < 0.6).all()
    assert (np.abs(kind.control.mean(1) - 1 / 3) < 0.2).all()
    weight = probe_label(run, labels_of(run, "weight"), shuffles=2)
    assert (weight.measure, weight.sizes, weight.score.shape) == ("R²", {"examples": N}, (4, 5))
    assert (weight.score[2:].mean(1) > 0.95).all() and (weight.score[:2].mean(1) < 0.3).all()
    assert (weight.control.mean(1) < 0.2).all()
    assert weight.to_frame()["n_examples"].tolist() == [N] * 4


def test_too_few_of_a_class_and_no_states_are_refused(store: TraceStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs 21 examples of each class; there are 20 a, 20 b and 20 c"):
        probe_label(store, labels_of(store, "kind"), folds=21)
    bare = labelled(tmp_path / "bare", "attn")
    with pytest.raises(NotCapturedError, match="`hidden` among the words of --capture"):
        probe_label(bare, labels_of(bare, "kind"))


def test_three_classes_in_a_cross_validation() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 30, 12])
    features = rng.normal(size=(102, 5)) + 5 * np.eye(5)[labels]
    got = cross_validate(features, labels)
    assert got.balanced_accuracy.mean() > 0.95 and got.auroc.mean() > 0.99
    chance = cross_validate(rng.normal(size=(102, 5)), labels)
    assert abs(chance.balanced_accuracy.mean() - 1 / 3) < 0.15 and abs(chance.auroc.mean() - 0.5) < 0.15
    with pytest.raises(UsageError, match="there are 60 of class 0, 30 of class 1 and 12 of class 2"):
        cross_validate(features, labels, folds=13)
    value = features @ np.arange(5.0) + rng.normal(size=102)
    assert cross_validate_number(features, value).mean() > 0.9
    with pytest.raises(UsageError, match="A probe of a number in 5 folds needs 10 examples; there are 9"):
        cross_validate_number(features[:9], value[:9])
    taken = labels[even_subsample(labels, 50, 0)]
    assert np.bincount(taken).tolist() == [19, 19, 12]


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    number = rng.normal(size=40)
    values = np.stack([number + rng.normal(size=40), rng.normal(size=40), np.full(40, 3.0), -2 * number], axis=1)
    values[:4, 1] = np.nan
    got = correlate({"x": values}, number, axes=("layer",), n_boot=400)
    for i, rows in enumerate((slice(0, None), slice(4, None))):
        expected = stats.pearsonr(values[rows, i], number[rows])
        assert got.r.value[i] == pytest.approx(expected.statistic) and got.n[i] == len(number[rows])
        assert got.p_value[i] == pytest.approx(expected.pvalue)
    assert np.isnan(got.r.value[2]) and np.isnan(got.q_value[2]) and got.r.value[3] == pytest.approx(-1)
    drawn = [rng.integers(40, size=40) for _ in range(400)]
    plain = np.quantile([np.corrcoef(values[d, 0], number[d])[0, 1] for d in drawn], [0.025, 0.975])
    np.testing.assert_allclose([got.r.low[0], got.r.high[0]], plain, atol=0.06)
    assert got.strongest(2).axes["layer"].tolist() == [3, 0]
