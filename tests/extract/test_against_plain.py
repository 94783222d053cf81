"""End to end on tiny models of every family: what is on disk equals plain transformers on the example alone."""

import json
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from support.models import FAMILIES, byte_tokenizer

from decision_traces import TraceStore
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

TEXTS = [
    "The cat sat on the mat.",
    "a",
    "",
    "ab",
    "   ",
    "Ωμέγα 東京 🙂",
    "x" * 200,
    "One more line of plain text, longer.",
]
T = 48


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return path


def _run(folder: Path, texts: Path, out: Path, **options) -> TraceStore:
    settings = {"capture": ("attn", "qkv", "hidden", "resid"), "max_seq_len": T, "dtype": "float32", **options}
    return TraceStore(
        extract_next_token(NextTokenConfig(model="tiny", model_path=folder, text_file=texts, out_dir=out, **settings))
    )


@pytest.mark.parametrize("family", plain.PLACES)
def test_every_tensor_equals_the_example_alone(family: str, tiny_folder, texts: Path, tmp_path: Path) -> None:
    folder = tiny_folder(family)
    store, model = _run(folder, texts, tmp_path / "run"), plain.load(folder)
    for row, text in enumerate(TEXTS):
        ids = byte_tokenizer()(text)["input_ids"][:T]
        assert store.n_tokens(row) == len(ids)
        if not ids:
            assert not store.hidden(row).any() and not store.attn(row).any()
            continue
        expected = plain.run_alone(model, family, ids)
        pairs = {
            "attn": (store.attn(row, trim=True), expected.attn),
            "hidden": (store.hidden(row, trim=True), expected.hidden),
            "embed": (store.resid_embed(row, trim=True), expected.pre_attn[0]),
            **{
                stage: (store.resid(row, stage=stage, trim=True), getattr(expected, stage))
                for stage in ("pre_attn", "post_attn", "post_mlp")
            },
        }
        for name, (stored, right) in pairs.items():
            assert plain.worst_difference(stored, right) < 2e-5, (family, name, text)
        _check_outcome(store, row, ids, expected.logits)


@pytest.mark.parametrize("family", plain.PLACES)
def test_one_row_at_a_time_is_equal_bit_for_bit(family: str, tiny_folder, texts: Path, tmp_path: Path) -> None:
    """Batching changes the order of sums inside matrix products; without it there is nothing left to differ."""
    folder = tiny_folder(family)
    store, model = _run(folder, texts, tmp_path / "run", batch_size=1), plain.load(folder)
    for row in (0, 1, 5, 7):
        expected = plain.run_alone(model, family, byte_tokenizer()(TEXTS[row])["input_ids"][:T])
        np.testing.assert_array_equal(store.attn(row, trim=True), expected.attn)
        np.testing.assert_array_equal(store.hidden(row, trim=True), expected.hidden)
        for stage in ("pre_attn", "post_attn", "post_mlp"):
            np.testing.assert_array_equal(store.resid(row, stage=stage, trim=True), getattr(expected, stage))


def _check_outcome(store: TraceStore, row: int, ids: list[int], logits: torch.Tensor) -> None:
    outcome = store.tokens.iloc[row]
    if len(ids) < 2:
        assert outcome["next_pos"] == -1 and outcome[["next_true_id", "next_pred_prob", "next_topk_ids"]].isna().all()
        return
    scores = logits[len(ids) - 2].double().numpy()
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert outcome["next_pos"] == len(ids) - 2
    assert outcome["next_true_id"] == ids[-1]
    assert outcome["next_pred_id"] == int(probs.argmax())
    assert outcome["next_correct"] == (ids[-1] == int(probs.argmax()))
    assert outcome["next_true_rank"] == 1 + int((scores > scores[ids[-1]]).sum())
    np.testing.assert_allclose(outcome["next_true_prob"], probs[ids[-1]], atol=1e-5)
    np.testing.assert_allclose(outcome["next_pred_prob"], probs.max(), atol=1e-5)
    np.testing.assert_allclose(outcome["next_entropy"], -(probs * np.log(probs)).sum(), atol=1e-4)
    assert list(outcome["next_topk_ids"]) == np.argsort(-scores)[:10].tolist()


@pytest.mark.parametrize(("family", "qkv"), [("llama", plain.llama_qkv), ("gpt2", plain.gpt2_qkv)])
def test_qkv_equal_hooks_on_the_projections(family: str, qkv, tiny_folder, texts: Path, tmp_path: Path) -> None:
    folder = tiny_folder(family)
    store, model = _run(folder, texts, tmp_path / "run", capture=("qkv",)), plain.load(folder)
    for row in (0, 5, 6):
        ids = byte_tokenizer()(TEXTS[row])["input_ids"][:T]
        for which, expected in zip("qkv", qkv(model, ids), strict=True):
            stored = store.qkv(row, which=which, trim=True)
            assert plain.worst_difference(stored, expected) < 2e-5, which


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_keys_give_the_attention_that_transformers_reports(
    family: str, tiny_folder, texts: Path, tmp_path: Path
) -> None:
    """softmax(scale * q.k) over earlier keys, on texts shorter than any sliding window; Gemma 2 caps its scores,
    BLOOM and MPT add a bias for distance."""
    folder = tiny_folder(family)
    store, model = _run(folder, texts, tmp_path / "run", capture=("qkv",), max_seq_len=12), plain.load(folder)
    for row in (0, 3, 5):
        ids = byte_tokenizer()(TEXTS[row])["input_ids"][:12]
        with torch.no_grad():
            expected = torch.stack(model(torch.tensor([ids]), output_attentions=True).attentions)[:, 0].numpy()
        q, k = (store.qkv(row, which=which, trim=True).astype(np.float64) for which in "qk")
        k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
        scores = q @ k.swapaxes(-1, -2) * np.asarray(store.meta["attention_scale"])[:, None, None, None]
        if family == "gemma2":
            scores = 50.0 * np.tanh(scores / 50.0)
        if family in {"bloom", "mpt"}:  # ALiBi (Press et al. 2022): a slope a head on the distance to the key
            slopes = 2.0 ** (-8.0 * np.arange(1, q.shape[1] + 1) / q.shape[1])
            scores = scores + slopes[:, None, None] * np.arange(len(ids))
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        np.testing.assert_allclose(probs / probs.sum(-1, keepdims=True), expected, atol=1e-5)


def test_float16_is_the_float32_value_rounded(tiny_folder, texts: Path, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    wide = _run(folder, texts, tmp_path / "wide")
    narrow = _run(folder, texts, tmp_path / "narrow", dtype="float16")
    for name in wide.arrays():
        exact = np.asarray(wide.to_xarray(name))
        np.testing.assert_array_equal(np.asarray(narrow.to_xarray(name)), exact.astype(np.float16))


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"rows": 2}, {"batch_size": 3, "rows": 5}], ids=str)
def test_batches_and_blocks_change_nothing(change: dict, tiny_folder, texts: Path, tmp_path: Path, blocks_of) -> None:
    folder, rows = tiny_folder("gpt2"), change.get("rows", len(TEXTS))
    one = _run(folder, texts, tmp_path / "one")
    blocks_of(rows)
    other = _run(folder, texts, tmp_path / "other", **{k: v for k, v in change.items() if k != "rows"})
    assert (one.meta["block_rows"], other.meta["block_rows"]) == (len(TEXTS), rows)
    for name in one.arrays():
        for row in range(len(TEXTS)):
            a, b = (np.asarray(st.to_xarray(name)[row]) for st in (one, other))
            there = (a != 0) | (b != 0)  # padding is zero in both
            assert plain.worst_difference(a[there], b[there]) < 2e-5, (name, row)
    for column in ("next_pred_id", "next_true_id", "next_true_rank", "n_tokens"):
        assert one.tokens[column].equals(other.tokens[column])
    np.testing.assert_allclose(
        one.tokens["next_entropy"].astype(float), other.tokens["next_entropy"].astype(float), atol=1e-5
    )


def test_a_first_token_added_by_the_tokenizer_is_there_once(tiny_folder, texts: Path, tmp_path: Path) -> None:
    folder = tiny_folder("llama", bos=True)
    store = _run(folder, texts, tmp_path / "run", capture=("hidden",))
    assert store.encodings(3, trim=True)["input_ids"].tolist() == [1, *byte_tokenizer()("ab")["input_ids"]]
    assert store.n_tokens(2) == 1  # the empty text is its first token
    assert store.meta["conventions"]["special_tokens"] == "the tokenizer adds <s> to every text"
