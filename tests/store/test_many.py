"""Reads over all examples: gather, xarray, PyTorch."""

import numpy as np
import pytest
import torch
from support.runs import TinyRun, build_run
from torch.utils.data import DataLoader

from decision_traces.store.reading import gather as gather_module
from decision_traces.store.reading.trace_store import TraceStore

NAN = np.float16(np.nan)
LENGTHS = (5, 2, 1, 6, 3)


def expected(values: np.ndarray, positions: list[int], axis: int) -> np.ndarray:
    """One position of every row by plain indexing; NaN where it is -1."""
    rows = [
        np.take(v, p, axis=axis - 1) if p >= 0 else np.full_like(np.take(v, 0, axis=axis - 1), NAN)
        for v, p in zip(values, positions, strict=True)
    ]
    return np.stack(rows)


@pytest.mark.parametrize(
    ("position", "places"),
    [
        ("next", [3, 0, -1, 4, 1]),
        ("last", [4, 1, 0, 5, 2]),
        (0, [0, 0, 0, 0, 0]),
        (2, [2, -1, -1, 2, 2]),
        (-1, [4, 1, 0, 5, 2]),
        (-3, [2, -1, -1, 3, 0]),
        (np.array([1, -1, 0, 5, 4]), [1, -1, 0, 5, -1]),
    ],
)
@pytest.mark.parametrize("step_bytes", [1, 400, 1 << 26])
def test_gather_takes_one_position_of_every_example(decoder, monkeypatch, position, places, step_bytes):
    monkeypatch.setattr(gather_module, "_STEP_BYTES", step_bytes)
    s, a = decoder.store, decoder.arrays
    cases = [
        (s.gather("dec_hidden", layer=-1, position=position), a["dec_hidden"][:, 3], 1),
        (s.gather("dec_hidden", position=position), a["dec_hidden"], 2),
        (s.gather("dec_res_embed", position=position), a["dec_res_embed"], 1),
        (s.gather("dec_self_q", layer=1, position=position), a["dec_self_q"][:, 1], 2),
        (s.gather("dec_self_v", layer=1, head=1, position=position), a["dec_self_v"][:, 1, 1], 1),
        (s.gather("dec_self_attn", layer=2, position=position), a["dec_self_attn"][:, 2], 2),
    ]
    for got, values, axis in cases:
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, expected(values, places, axis))


def test_gather_over_choices(choices):
    s, a = choices.store, choices.arrays["enc_mc_hidden"]
    got = s.gather("enc_mc_hidden", layer=1, position="last")
    assert got.shape == (3, 2, 8)
    for row, pair in enumerate(((5, 2), (3, 3), (1, 6))):
        for c, length in enumerate(pair):
            np.testing.assert_array_equal(got[row, c], a[row, c, 1, length - 1])
    third = s.gather("enc_mc_hidden", layer=1, position=2)
    assert np.isnan(third[0, 1]).all()
    np.testing.assert_array_equal(third[2, 1], a[2, 1, 1, 2])


def test_gather_needs_predictions_for_next(choices):
    with pytest.raises(ValueError, match="no one position of its prediction"):
        choices.store.gather("enc_mc_hidden", position="next")


@pytest.mark.parametrize("layout", ["sharded", "v2"])
def test_xarray_is_lazy_and_labelled(tmp_path, layout, monkeypatch):
    arrays = build_run(tmp_path / "r", TinyRun(layout=layout))
    s, a = TraceStore(tmp_path / "r"), arrays["dec_self_k"]
    reads = []
    read_box = type(s.array("dec_self_k")).read_box
    monkeypatch.setattr(
        "decision_traces.store.reading.arrays.StoredArray.read_box",
        lambda self, box: reads.append(box) or read_box(self, box),
    )
    x = s.to_xarray("dec_self_k")
    assert x.dims == ("example", "layer", "kv_head", "position", "d_head")
    assert list(x.n_tokens.values) == list(LENGTHS)
    part = x.sel(example="tiny-validation-000003").isel(layer=1)
    assert not reads
    np.testing.assert_array_equal(part.values, a[3, 1])
    assert reads == [(slice(3, 4), slice(1, 2), slice(0, 2), slice(0, 6), slice(0, 3))]
    np.testing.assert_array_equal(x[::-2].values, a[::-2])
    np.testing.assert_array_equal(x[[4, 0, 0], -1, :, [1, 2]].values, a[np.ix_([4, 0, 0], [2], [0, 1], [1, 2])][:, 0])
    np.testing.assert_array_equal(x[2:2].values, a[2:2])
    np.testing.assert_array_equal(x.max("position").values, a.max(axis=3))


def test_torch_dataset(decoder):
    data = decoder.store.torch_dataset("dec_hidden", layer=-1)
    assert isinstance(data, torch.utils.data.Dataset)
    assert len(data) == 5
    item = data[3]
    assert (item["example_id"], item["row"], item["values"].dtype) == ("tiny-validation-000003", 3, torch.float16)
    np.testing.assert_array_equal(item["values"].numpy(), decoder.arrays["dec_hidden"][3, 3])
    assert data[1]["mask"].tolist() == [True, True, False, False, False, False]


def test_torch_dataset_reads_in_a_forked_worker_after_the_parent_has_read(decoder):
    data = decoder.store.torch_dataset("dec_hidden", layer=0)
    _ = data[0]
    batches = list(DataLoader(data, batch_size=5, num_workers=1, multiprocessing_context="forkserver", timeout=60))
    np.testing.assert_array_equal(batches[0]["values"].numpy(), decoder.arrays["dec_hidden"][:, 0])
