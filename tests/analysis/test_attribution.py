"""Attribution against NumPy on what plain transformers compute, with each family's norm and projection by name."""

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
import zarr
from support.models import byte_tokenizer
from transformers import AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis import positions, states
from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.attribution.grid import attribution_and_grid
from decision_traces.analysis.attribution.heads import find_head_writers
from decision_traces.analysis.lens.unembedding import Unembedding, load_run_model, load_unembedding, of_model
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import ModelError, NotCapturedError, UnsupportedArchitecture

# Per family: the final norm, what it is, and each layer's output projection with the norm behind it.
FAMILIES = {
    "gpt2": ("transformer.ln_f", "layer", "attn.c_proj", None),
    "llama": ("model.norm", "rms", "self_attn.o_proj", None),
    "qwen3": ("model.norm", "rms", "self_attn.o_proj", None),
    "gemma": ("model.norm", "rms+1", "self_attn.o_proj", None),
    "gemma3": ("model.norm", "rms+1", "self_attn.o_proj", "post_attention_layernorm"),
    "olmo2": ("model.norm", "rms", "self_attn.o_proj", "post_attention_layernorm"),
    "opt": ("model.decoder.final_layer_norm", "layer", "self_attn.out_proj", None),
    "gpt_neox": ("gpt_neox.final_layer_norm", "layer", "attention.dense", None),
    "phi": ("model.final_layernorm", "layer", "self_attn.dense", None),
}


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _frozen(norm, kind: str, x: np.ndarray):
    """The norm at x as a linear map and a bias, by the formulas of Ba et al. 2016 and Zhang & Sennrich 2019."""
    weight = _array(norm.weight) + (kind == "rms+1")
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
    centre = (lambda v: v - v.mean()) if kind == "layer" else (lambda v: v)
    root = np.sqrt((centre(x) ** 2).mean() + eps)
    bias = _array(norm.bias) if kind == "layer" else np.zeros_like(x)
    return (lambda v: centre(v) / root * weight), bias


def _values(model, ids: list[int]) -> list[np.ndarray]:
    """What attention's own function gets as values in each layer, (H_kv, T, d_head)."""
    from decision_traces.model.discovery.intercept import watch_attention

    found: list[np.ndarray] = []
    with torch.no_grad(), watch_attention(lambda call: found.append(call.value[0].double().numpy())):
        model(torch.tensor([ids]), use_cache=False)
    return found


def _by_hand(model, family: str, ids: list[int]):
    """Contributions to (true − competitor): embed, attn (L), mlp (L), heads (L, H), attention biases (L), rest."""
    final_name, kind, projection, behind = FAMILIES[family]
    seen, at, layers = plain.run_alone(model, family, ids), len(ids) - 2, model.get_submodule(plain.PLACES[family][0])
    logits = seen.logits[at].double().numpy()
    order = np.argsort(-logits)
    competitor = order[1] if order[0] == ids[-1] else order[0]
    head = model.get_output_embeddings()
    along = _array(head.weight)[ids[-1]] - _array(head.weight)[competitor]
    pre, mid, post = (np.asarray(getattr(seen, n)[:, at], np.float64) for n in ("pre_attn", "post_attn", "post_mlp"))
    last, bias = _frozen(model.get_submodule(final_name), kind, post[-1])
    remainder = bias @ along + (0 if head.bias is None else _array(head.bias)[[ids[-1], competitor]] @ [1, -1])
    values, heads, biases = _values(model, ids), [], []
    for index, layer in enumerate(layers):
        out = layer.get_submodule(projection)
        matrix = _array(out.weight) if out.__class__.__name__ == "Conv1D" else _array(out.weight).T
        probs = np.asarray(seen.attn[index][:, at], np.float64)
        each = [p @ values[index][h // (len(probs) // len(values[index]))] for h, p in enumerate(probs)]
        size = len(each[0])
        written = [z @ matrix[h * size : (h + 1) * size] for h, z in enumerate(each)]
        constant = np.zeros_like(along) if out.bias is None else _array(out.bias)
        after = 0.0
        if behind:
            behind_map, behind_bias = _frozen(layer.get_submodule(behind), kind, sum(written) + constant)
            written, constant, after = [behind_map(w) for w in written], behind_map(constant), behind_bias
        heads.append([last(w) @ along for w in written])
        biases.append(last(constant + after) @ along)
    attn, mlp = ([last(write) @ along for write in writes] for writes in (mid - pre, post - mid))
    return last(pre[0]) @ along, attn, mlp, heads, biases, remainder, logits[ids[-1]] - logits[competitor]


STATES = ("attn", "qkv", "hidden", "resid")
WRITES = ("hidden", "attn_out", "mlp_out", "head_out")
CAPTURED = [
    *((family, STATES) for family in FAMILIES),
    *((family, ("resid", "head_out")) for family in ("qwen3", "gemma3")),
    *((family, WRITES) for family in ("gpt2", "qwen3", "gemma3", "phi")),
]


@pytest.mark.parametrize(("family", "capture"), CAPTURED)
def test_equals_the_formulas_by_hand(family: str, capture: tuple[str, ...], traced, tiny_folder) -> None:
    store = TraceStore(traced(family, capture=capture))
    loaded = load_run_model(store)
    result = direct_attribution(store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded))
    model = plain.load(tiny_folder(family))
    texts = [store.text(row) for row in range(store.n) if len(store.text(row)) > 1]
    assert len(result.example_id) == len(texts) == 5
    for row, text in enumerate(texts):
        embed, attn, mlp, heads, biases, rest, difference = _by_hand(model, family, byte_tokenizer()(text)["input_ids"])
        size = 1 + np.abs([embed, *attn, *mlp, difference]).max()
        for got, right in (
            (result.embed[row], embed), (result.attn[row], attn), (result.mlp[row], mlp), (result.heads[row], heads),
            (result.attn_bias[row], biases), (result.remainder[row], rest), (result.difference[row], difference),
        ):  # fmt: skip
            np.testing.assert_allclose(got, right, atol=1e-4 * size)
    assert result.sum_error < 1e-3 and result.head_error < 1e-3


def test_the_demo_model_adds_up_in_float16(demo_run) -> None:
    store = TraceStore(demo_run(dtype="float16"))
    loaded = load_run_model(store)
    result = direct_attribution(store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded))
    model, tokenizer = plain.load(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    for row in range(6):
        embed, attn, mlp, heads, _, _, difference = _by_hand(model, "gpt2", tokenizer(store.text(row))["input_ids"])
        for got, right in ((result.embed[row], embed), (result.attn[row], attn), (result.mlp[row], mlp)):
            np.testing.assert_allclose(got, right, atol=0.02)
        np.testing.assert_allclose(result.heads[row], heads, atol=0.02)
        np.testing.assert_allclose(result.difference[row], difference, atol=1e-3)
        total = result.embed[row] + result.attn[row].sum() + result.mlp[row].sum() + result.remainder[row]
        np.testing.assert_allclose(total, difference, atol=0.01)
        np.testing.assert_allclose(result.running()[row, -1], difference, atol=0.01)
    assert 0 < result.sum_error < 0.01 and 0 < result.head_error < 0.01
    assert (result.difference > 0).tolist() == result.correct.tolist()


def test_what_was_captured_gives_what_is_recomputed(demo_run) -> None:
    whole, without = (TraceStore(demo_run(dtype="float16", **more)) for more in ({}, {"capture": STATES}))
    found = []
    for store in (whole, without, TraceStore(demo_run(dtype="float16", capture=WRITES))):
        loaded = load_run_model(store)
        found.append(
            direct_attribution(store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded))
        )
    captured, recomputed, from_writes = found
    assert np.array_equal(captured.attn, recomputed.attn) and np.array_equal(captured.mlp, recomputed.mlp)
    assert 0 < np.abs(captured.heads - recomputed.heads).max() < 1e-3
    for name in ("embed", "attn", "mlp", "heads", "attn_bias", "remainder"):
        np.testing.assert_allclose(getattr(from_writes, name), getattr(recomputed, name), atol=0.01)


@pytest.mark.parametrize("capture", [("hidden", "attn_out"), ("attn_out", "mlp_out"), ("hidden", "mlp_out")])
def test_what_a_run_does_not_hold_of_its_stream_is_named(traced, capture: tuple[str, ...]) -> None:
    store = TraceStore(traced("gpt2", capture=capture))
    with pytest.raises(NotCapturedError, match="resid"):
        direct_attribution(store, load_unembedding(store))


def test_every_state_is_read_once_for_table_and_page(demo_run, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = TraceStore(demo_run(limit=12)), []
    read_block = positions.Block.read

    def noted(block: positions.Block, at: states.Point) -> np.ndarray:
        read.append((at.array.spec.name, at.layer))
        return read_block(block, at)

    monkeypatch.setattr(positions.Block, "read", noted)
    loaded = load_run_model(store)
    found, _ = attribution_and_grid(
        store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded), tmp_path
    )
    assert len(read) == len(set(read)) == 1 + 3 * store.L  # embedding; after attention, after the MLP, heads
    grid = zarr.open_group(tmp_path / "contributions.zarr", mode="r")
    ids = np.asarray(grid["candidates"])[:, 0]
    at = np.arange(12), 0, (ids == found.competitor_id[:, None]).argmax(1)
    np.testing.assert_allclose(np.asarray(grid["parts"])[at][:, 1:-1:2], found.attn, atol=1e-6)
    np.testing.assert_allclose(np.asarray(grid["heads"])[at], found.heads, atol=1e-6)


def test_bfloat16_adds_up_within_its_rounding(traced) -> None:
    store = TraceStore(traced("llama", model_dtype="bfloat16", dtype="float16"))
    loaded = load_run_model(store)
    result = direct_attribution(store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded))
    assert 1e-4 < result.sum_error < 0.1


def test_without_heads_and_in_small_parts(traced, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = TraceStore(traced("llama", capture=("resid",))), []
    whole = direct_attribution(store, load_unembedding(store))
    assert whole.heads is None and whole.head_error is None
    monkeypatch.setattr(states, "rows_per_step", lambda *_: 4)
    apart = direct_attribution(store, load_unembedding(store), progress=lambda done, of: told.append((done, of)))
    np.testing.assert_allclose(apart.attn, whole.attn, atol=1e-6)
    assert told == [(4, 6), (6, 6)]
    with pytest.raises(NotCapturedError, match="attn"):
        find_head_writers(store, load_run_model(store))


def test_the_table_has_one_row_per_part(traced) -> None:
    store = TraceStore(traced("gpt2"))
    loaded = load_run_model(store)
    result = direct_attribution(store, of_model(loaded, store.meta["final_norm"]), find_head_writers(store, loaded))
    frame = result.to_frame()
    assert len(frame) == 5 * (1 + 3 + 3 + 3 * 4 + 3 + 1)
    whole = frame[frame["part"].isin(["embed", "attn", "mlp", "remainder"])]
    sums = whole.groupby("example_id", observed=True)["logits"].sum()
    np.testing.assert_allclose(sums[list(result.example_id)], result.difference, atol=1e-3)
    one = frame.query("part == 'head' and layer == 2 and head == 3")
    np.testing.assert_array_equal(one["logits"], result.heads[:, 2, 3])
    attention = frame[frame["part"].isin(["head", "attn_bias"])].groupby(["example_id", "layer"], observed=True)
    np.testing.assert_allclose(attention["logits"].sum().unstack().loc[list(result.example_id)], result.attn, atol=1e-3)


@pytest.mark.parametrize("missing", ["norm", "weights"])
def test_parts_that_do_not_add_up_are_refused(missing: str, traced) -> None:
    store, other = TraceStore(traced("gpt2")), TraceStore(traced("llama"))
    right, wrong = load_unembedding(store), load_unembedding(other)
    head = Unembedding(None, right.head) if missing == "norm" else Unembedding(right.norm, wrong.head)
    with pytest.raises(ModelError, match="miss the model's logit difference"):
        direct_attribution(store, head)


def test_a_post_norm_family_is_refused_with_the_reason(traced) -> None:
    store = TraceStore(traced("opt_post_norm"))
    with pytest.raises(UnsupportedArchitecture, match="post-LN"):
        direct_attribution(store, load_unembedding(store))
    with pytest.raises(UnsupportedArchitecture, match="post-LN"):
        find_head_writers(store, load_run_model(store))


def test_a_factor_behind_the_projection_is_found(traced) -> None:
    store = TraceStore(traced("granite"))
    writers = find_head_writers(store, load_run_model(store))
    np.testing.assert_allclose([w.factor for w in writers], [0.5] * 3, atol=1e-5)  # its residual_multiplier


def test_heads_of_another_model_are_refused(traced) -> None:
    store = TraceStore(traced("llama"))
    loaded = load_run_model(store)
    with torch.no_grad():
        loaded.model.model.layers[1].self_attn.o_proj.weight[:, :8].mul_(1.001)  # one head of four
    with pytest.raises(UnsupportedArchitecture, match="heads of layer 1 do not sum"):
        find_head_writers(store, loaded)
    with pytest.raises(UnsupportedArchitecture, match="takes what its heads put out"):
        find_head_writers(store, load_run_model(TraceStore(traced("qwen3"))))


def test_questions_are_attributed_between_the_answers(questions) -> None:
    store = TraceStore(questions)
    result = direct_attribution(store, load_unembedding(store))
    table = store.tokens
    scores = np.stack(table["choice_logits"])
    right = table["correct_idx"].to_numpy()
    true = scores[np.arange(len(right)), right]
    scores[np.arange(len(right)), right] = -np.inf
    np.testing.assert_allclose(result.difference, true - scores.max(1), atol=1e-6)
    assert result.target_id.tolist() == [ids[i] for ids, i in zip(table["choice_token_ids"], right, strict=True)]
    assert result.sum_error < 1e-3


def test_fields_of_different_sizes_are_refused(traced) -> None:
    result = direct_attribution(store := TraceStore(traced("gpt2")), load_unembedding(store))
    with pytest.raises(ValueError, match="all fields need 5 entries"):
        replace(result, example_id=("a",))
    with pytest.raises(ValueError, match="need to begin with"):
        replace(result, heads=np.zeros((5, 3, 4), np.float32))
