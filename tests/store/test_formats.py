"""Runs of older formats, kept as they were written; and formats that are newer, unknown, or none at all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import DECODER, build_run, seal

from decision_traces.errors import DamagedRunError, NewerFormatWarning, RunError
from decision_traces.format.meta import RunMeta
from decision_traces.store.files.runs import list_runs
from decision_traces.store.reading.trace_store import TraceStore
from decision_traces.store.validate.run import failures, validate_run

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = {"1.0": GOLDEN / "run_1_0", "1.1": GOLDEN / "run_1_1"}
SENTENCE = "after the attention LayerNorm (post-LN family): what the MLP half reads from"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    build_run(folder, DECODER)
    return folder


@pytest.fixture
def changed(run: Path) -> Iterator[Callable[..., Path]]:
    """Make the run's meta say something else, and be believed: its digest is right."""
    before = (run / "meta.json").read_bytes()

    def make(**keys: Any) -> Path:
        seal(run, json.loads(before) | keys)
        return run

    yield make
    (run / "meta.json").write_bytes(before)


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_a_run_of_an_older_format_is_small_and_holds_in_every_check(old):
    assert sum(p.stat().st_size for p in old.rglob("*") if p.is_file()) < 60_000
    assert not failures(validate_run(old))
    assert [(r.state, r.model) for r in list_runs(GOLDEN)] == [("complete", "demo")] * 2


def test_the_first_format_reads_as_it_was_written():
    store = TraceStore(OLD["1.0"])
    assert (store.n, store.T, store.L, store.H, store.d_head, store.d_model) == (2, 3, 5, 4, 32, 128)
    assert store.arrays() == {
        "dec_self_q": (2, 5, 4, 3, 32),
        "dec_self_k": (2, 5, 4, 3, 32),
        "dec_self_v": (2, 5, 4, 3, 32),
        "dec_hidden": (2, 6, 3, 128),
    }
    assert store.tokens["next_pred_token"].tolist() == [" small", " says"]
    np.testing.assert_allclose(store.hidden(1, layer=5)[2, :3], [1.246, 1.562, 3.398], rtol=1e-3)
    np.testing.assert_allclose(store.qkv(1, "v", layer=4, head=2)[2, :3], [-1.582, 0.863, 0.6797], rtol=1e-3)
    assert str(store.about.format_version) == "1.0"
    assert (store.about.sides, store.about.post_attn) == ({}, "stream")


def test_format_1_1_reads_as_it_was_written():
    store = TraceStore(OLD["1.1"])
    assert (store.n, store.T, store.L, store.H) == (3, 45, 5, 4)
    assert store.arrays() == {"dec_self_attn": (3, 2, 4, 1, 45), "dec_hidden": (3, 4, 1, 128)}
    assert store.positions(2).tolist() == [23]
    np.testing.assert_allclose(store.hidden(1, layer=4)[0, :3], [5.12, 3.557, -9.984], rtol=1e-3)
    attention = store.attn(2, layer=3, head=1)
    np.testing.assert_allclose(attention[0, :4], [0.02844, 0.1064, 0.0284, 0.005817], rtol=1e-3)
    assert store.about.dims("dec").layers == (1, 3)
    assert store.about.post_attn == "stream"


def test_what_post_attn_is_stands_in_a_key_and_older_runs_have_it_read_from_their_sentence():
    def kind(**meta: Any) -> str | None:
        return RunMeta.read({"conventions": {"post_attn": SENTENCE}} | meta).post_attn

    assert kind() == "post_norm"
    assert kind(format_version="1.1", conventions={"post_attn": "missing: no attention"}) is None
    assert kind(format_version="1.2", post_attn="derived") == "derived"
    assert kind(format_version="1.2", post_attn="post_norm", conventions={"post_attn": "in new words"}) == "post_norm"
    assert kind(format_version="1.2", post_attn=None) is None


def test_a_newer_minor_format_opens_with_a_warning_whatever_else_it_says(changed):
    run = changed(format_version="1.9", selection_of_neurons=[1, 2], sides=json_sides() | {"vision": {}})
    with pytest.warns(NewerFormatWarning, match=r"format 1\.9, newer than 1\.3"):
        assert TraceStore(run).hidden(0).shape == (4, 6, 8)


def json_sides() -> dict[str, Any]:
    sizes = {"n_examples": 5, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_head": 3, "d_model": 8, "n_positions": 6}
    return {"dec": sizes | {"vocab_size": 50, "shape_of_things": "new"}}


def test_an_unknown_major_format_is_refused_in_a_sentence(changed):
    run = changed(format_version="2.0")
    for read in (TraceStore, validate_run):
        with pytest.raises(RunError, match=r"run is of format 2\.0; .* reads formats 1\.x") as refused:
            read(run)
        assert not isinstance(refused.value, DamagedRunError)
    (listed,) = list_runs(run.parent)
    assert listed.state == "damaged" and "format 2.0" in listed.why


@pytest.mark.parametrize("nonsense", ["1", "one", "1.1.1", "-1.0", "99999.0", 1.1, None, ["1.1"], ""])
def test_a_version_that_is_none_is_damage(changed, nonsense):
    run = changed(format_version=nonsense)
    with pytest.raises(DamagedRunError, match="format_version"):
        TraceStore(run)
    assert any(check.array == "meta.json" for check in failures(validate_run(run)))


@pytest.mark.parametrize(
    "keys",
    [
        {"num_layers": 10**9},
        {"n_examples": -1},
        {"sides": {"dec": json_sides()["dec"] | {"n_heads": 10**9}}},
        {"sides": {"dec": json_sides()["dec"] | {"layers": [2, 1]}}},
        {"sides": {"dec": json_sides()["dec"] | {"positions": [6]}}},
        {"sides": {}},
        {"capture": "attn"},
        {"arrays": {"dec_hidden": {"shape": [10**15]}}},
        {"arrays": 3},
        {"certificate": [1]},
        {"n_predictions": -1},
        {"next_accuracy": "high"},
        {"mean_of_a_kind_to_come": [1]},
    ],
    ids=str,
)
def test_a_field_out_of_bounds_is_named_by_the_reader_and_by_the_checks(changed, keys):
    run, (name,) = changed(**keys), keys
    with pytest.raises(DamagedRunError, match=rf"meta\.json is damaged: {name}: "):
        TraceStore(run)
    found = {check.name: check.detail for check in failures(validate_run(run))}
    assert f"{name}: " in found["meta.json complete"]
    assert [(r.state, name in r.why) for r in list_runs(run.parent)] == [("damaged", True)]


def test_what_is_read_is_what_was_written():
    for run in OLD.values():
        meta = json.loads((run / "meta.json").read_text(encoding="utf-8"))
        about = RunMeta.read(meta)
        assert about.problems == ()
        written = json.loads(json.dumps(about.as_json()))
        known = {key: value for key, value in meta.items() if key not in {"digest", "selection"}}
        assert {key: written[key] for key in known} == known
