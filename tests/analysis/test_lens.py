"""The lens against final norm and head applied by hand to the states of plain transformers."""

from dataclasses import fields

import numpy as np
import plain
import pytest
import torch
import zarr
from support.models import byte_tokenizer
from transformers import AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis import states
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens import unembedding
from decision_traces.analysis.lens.grid import lens_and_grid
from decision_traces.analysis.lens.logit_lens import logit_lens, with_competitors
from decision_traces.analysis.lens.unembedding import Unembedding, load_unembedding
from decision_traces.analysis.results import LensTrajectories, TokenPath
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import ModelError, NotCapturedError, UsageError

NORMS = {
    "gpt2": "transformer.ln_f",
    "llama": "model.norm",
    "gemma": "model.norm",
    "olmo2": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
}
STAGES = ("pre_attn", "post_attn", "post_mlp")


def _ids(store: TraceStore) -> list[list[int]]:
    """The texts that have a prediction, tokenised by hand."""
    return [byte_tokenizer()(store.text(row))["input_ids"] for row in range(store.n) if len(store.text(row)) > 1]


def _expected(model, family: str, ids: list[int]) -> dict[str, np.ndarray]:
    """Logits (depth, vocabulary) of every stage at the last prediction of one text, float64."""
    norm, head = model.get_submodule(NORMS[family]), model.get_output_embeddings()
    seen, at = plain.run_alone(model, family, ids), len(ids) - 2
    with torch.no_grad():
        by_hand = {name: head(norm(torch.from_numpy(getattr(seen, name)[:, at]))).double().numpy() for name in STAGES}
        before = head(norm(torch.from_numpy(seen.hidden[:-1, at]))).double().numpy()
    return {**by_hand, "hidden": np.concatenate([before, seen.logits[None, at].double().numpy()])}


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", NORMS)
def test_equals_norm_and_head_applied_by_hand(family: str, traced, tiny_folder) -> None:
    store, model = TraceStore(traced(family)), plain.load(tiny_folder(family))
    head = load_unembedding(store)
    seen = {stage: logit_lens(store, head, stage, top_k=4) for stage in (*STAGES, "hidden")}
    for row, ids in enumerate(_ids(store)):
        expected = _expected(model, family, ids)
        end = expected["hidden"][-1]
        truth, said = ids[-1], int(end.argmax())
        competitor = int(np.argsort(-end)[1]) if said == truth else said
        for stage, lens in seen.items():
            logits, probs = expected[stage], _softmax(expected[stage])
            for path, token in ((lens.true, truth), (lens.pred, said), (lens.competitor, competitor)):
                np.testing.assert_allclose(path.logit[row], logits[:, token], atol=2e-4, rtol=1e-4)
                np.testing.assert_allclose(path.prob[row], probs[:, token], atol=1e-5)
                assert path.rank[row].tolist() == (1 + (logits > logits[:, [token]]).sum(1)).tolist()
            order = np.argsort(-logits, axis=1)[:, :4]
            np.testing.assert_array_equal(lens.topk_ids[row], order)
            np.testing.assert_allclose(lens.topk_probs[row], np.take_along_axis(probs, order, 1), atol=1e-5)
            top = np.take_along_axis(logits, order, 1)
            np.testing.assert_allclose(lens.margin[row], top[:, 0] - top[:, 1], atol=2e-4)
            np.testing.assert_allclose(lens.entropy[row], -(probs * np.log(probs)).sum(1), atol=1e-4)
            last = _softmax(end)
            np.testing.assert_allclose(lens.kl_to_final[row], (last * np.log(last / probs)).sum(1), atol=1e-4)
            assert (lens.true_id[row], lens.pred_id[row], lens.competitor_id[row]) == (truth, said, competitor)
            assert lens.correct[row] == (truth == said)
    assert all(lens.model_error < 1e-5 for lens in seen.values())


def test_examples_without_a_prediction_are_left_out(traced) -> None:
    store = TraceStore(traced("gpt2"))
    lens = logit_lens(store, load_unembedding(store))
    assert list(lens.example_id) == [store.example_id(i) for i in (0, 1, 3, 4, 5)]  # "x" is one token long
    frame = lens.to_frame()
    assert len(frame) == 5 * 4 and frame["depth"].tolist() == [0.0, 1.0, 2.0, 3.0] * 5
    third = frame[frame["example_id"] == store.example_id(3)]
    np.testing.assert_array_equal(third["true_logit"], lens.true.logit[2])
    np.testing.assert_array_equal(np.stack(third["topk_ids"]), lens.topk_ids[2])
    assert logit_lens(store, load_unembedding(store), "post_attn").to_frame()["depth"].tolist() == [0.5, 1.5, 2.5] * 5


@pytest.mark.parametrize(("at_once", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])])
def test_small_parts_give_the_same_and_progress_is_told(
    traced, monkeypatch: pytest.MonkeyPatch, at_once: int, steps: list[int]
) -> None:
    store = TraceStore(traced("llama"))  # six examples, of which the third has no prediction
    whole, told = logit_lens(store, load_unembedding(store)), []
    monkeypatch.setattr(states, "rows_per_step", lambda *_: 2)
    vocab = load_unembedding(store).weight.shape[0]
    monkeypatch.setattr(unembedding, "_LOGIT_BYTES", {"cpu": at_once * 4 * vocab})
    apart = logit_lens(store, load_unembedding(store), progress=lambda done, of: told.append((done, of)))
    assert told == [(done, 5) for done in steps]
    for field in ("topk_ids", "true_id", "competitor_id"):
        np.testing.assert_array_equal(getattr(apart, field), getattr(whole, field))
    np.testing.assert_allclose(apart.true.logit, whole.true.logit, atol=1e-5)
    np.testing.assert_allclose(apart.entropy, whole.entropy, atol=1e-5)


def test_a_run_of_residual_stages_alone_has_the_same_way(traced) -> None:
    whole, alone = TraceStore(traced("olmo2")), TraceStore(traced("olmo2", capture=("resid",)))
    lenses = [logit_lens(store, load_unembedding(store)) for store in (whole, alone)]
    np.testing.assert_allclose(lenses[0].true.logit, lenses[1].true.logit, atol=1e-4)
    assert lenses[1].model_error < 1e-5


def test_competitors_the_table_does_not_tell_are_read_off_the_end(demo_run) -> None:
    store, lone = TraceStore(demo_run()), TraceStore(demo_run(next_topk=1))
    right = store.tokens["next_correct"].to_numpy(dtype=bool)
    expected = [top[1] if ok else top[0] for top, ok in zip(store.tokens["next_topk_ids"], right, strict=True)]
    assert right.sum() > 20 and decisions_of(store).competitor_id.tolist() == expected
    unknown = decisions_of(lone)
    assert (unknown.competitor_id < 0).tolist() == right.tolist()
    assert with_competitors(unknown, lone, load_unembedding(lone)).competitor_id.tolist() == expected


def test_what_was_not_captured_or_does_not_exist_is_refused(traced, tiny_folder) -> None:
    without = TraceStore(traced("gpt2", capture=("attn",)))
    with pytest.raises(NotCapturedError, match=r"`hidden` among the words of --capture"):
        logit_lens(without, load_unembedding(without))
    with pytest.raises(ModelError, match="not those the run was made with"):
        load_unembedding(without, tiny_folder("llama"))
    store = TraceStore(traced("gpt2"))
    with pytest.raises(UsageError, match="top_k 0"):
        logit_lens(store, load_unembedding(store), top_k=0)


def test_a_wrong_norm_is_noticed_at_the_end(traced) -> None:
    store = TraceStore(traced("gpt2", capture=("resid",)))
    right = load_unembedding(store)
    with pytest.raises(ModelError, match="misses the model's own probabilities"):
        logit_lens(store, Unembedding(None, right.head))


def test_bfloat16_and_float16_runs_stay_within_rounding(traced) -> None:
    for options, most in (({"model_dtype": "bfloat16", "dtype": "float16"}, 1e-3), ({"dtype": "float16"}, 1e-4)):
        store = TraceStore(traced("llama", **options))
        assert logit_lens(store, load_unembedding(store)).model_error < most


def test_the_demo_model_by_hand(demo_run) -> None:
    store = TraceStore(demo_run())
    lens = logit_lens(store, load_unembedding(store))
    model, tokenizer = plain.load(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    for row in range(12):
        ids = tokenizer(store.text(row))["input_ids"]
        logits = _expected(model, "gpt2", ids)["hidden"]
        order = np.argsort(-logits[-1])
        competitor = order[1] if order[0] == ids[-1] else order[0]
        np.testing.assert_allclose(lens.true.logit[row], logits[:, ids[-1]], atol=1e-3)
        np.testing.assert_allclose(lens.competitor.logit[row], logits[:, competitor], atol=1e-3)
        assert lens.top_id[row].tolist() == logits.argmax(1).tolist()
    assert lens.correct.sum() > 20 and lens.model_error < 1e-5


def test_trajectories_of_different_shapes_are_refused() -> None:
    path = TokenPath(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), np.ones((1, 2), np.int32))
    one, curve = np.zeros(1, np.int32), np.zeros((1, 2), np.float32)
    top = np.zeros((1, 2, 1), np.int32)
    good = LensTrajectories(
        "hidden", ("a",), np.ones(1, bool), one, one, one, path, path, path, top, top.astype(np.float32),
        curve, curve, curve, 0.0,
    )  # fmt: skip
    values = {f.name: getattr(good, f.name) for f in fields(good)}
    with pytest.raises(ValueError, match="need"):
        LensTrajectories(**{**values, "example_id": ("a", "b")})
    short = TokenPath(path.logit[:, :1], path.prob[:, :1], path.rank[:, :1])
    with pytest.raises(ValueError, match="all trajectories need the shape"):
        LensTrajectories(**{**values, "pred": short})


@pytest.mark.parametrize("all_positions", [False, True])
def test_no_state_is_multiplied_by_the_unembedding_twice(demo_run, tmp_path, monkeypatch, all_positions) -> None:
    store, rows = TraceStore(demo_run(limit=12)), []
    multiply = Unembedding.logits
    monkeypatch.setattr(Unembedding, "logits", lambda self, x, **how: rows.append(len(x)) or multiply(self, x, **how))
    lens, _ = lens_and_grid(store, load_unembedding(store), tmp_path, all_positions=all_positions)
    assert sum(rows) == 6 * (int(store.spans.n_tokens.sum()) if all_positions else 2 * 12)
    grid = zarr.open_group(tmp_path / "lens.zarr", mode="r")
    slot = (np.asarray(grid["positions"]) == lens.position[:, None]).argmax(1)
    assert np.array_equal(np.asarray(grid["prob"])[np.arange(12), :, slot], lens.true.prob)
    assert np.array_equal(np.asarray(grid["top_ids"])[np.arange(12), :, slot, :5], lens.topk_ids)
