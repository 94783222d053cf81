"""The lens and decision depth against a direct computation with plain transformers, and hand-made trajectories."""

from pathlib import Path

import numpy as np
import plain
import pytest
import torch

from decision_traces import TraceStore
from decision_traces.analysis.depth import decision_depth
from decision_traces.analysis.lens import logit_lens
from decision_traces.analysis.results import LensTrajectories
from decision_traces.analysis.unembedding import load_unembedding
from decision_traces.errors import ModelError, NotCapturedError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.testing.models import byte_tokenizer

TEXTS = ["The cat sat on the mat.", "ab", "x", "A somewhat longer line, for the lens."]
PLACES = {"gpt2": ("transformer.ln_f", "lm_head"), "llama": ("model.norm", "lm_head")}


@pytest.fixture
def run(tiny_folder, tmp_path: Path):
    def make(family: str, **options) -> Path:
        texts = tmp_path / "lines.txt"
        texts.write_text("\n".join(TEXTS))
        config = NextTokenConfig(
            model="tiny",
            model_path=tiny_folder(family),
            text_file=texts,
            out_dir=tmp_path / family,
            **{"capture": ("hidden",), "dtype": "float32", **options},
        )
        return extract_next_token(config)

    return make


@pytest.mark.parametrize("family", PLACES)
def test_equals_norm_and_head_applied_by_hand(family: str, run, tiny_folder) -> None:
    store = TraceStore(run(family))
    lens = logit_lens(store, load_unembedding(store))
    model = plain.load(tiny_folder(family))
    norm, head = (model.get_submodule(name) for name in PLACES[family])
    kept = [t for t in TEXTS if len(t) > 1]
    assert list(lens.example_id) == [store.example_id(i) for i, t in enumerate(TEXTS) if len(t) > 1]
    for row, text in enumerate(kept):
        ids = byte_tokenizer()(text)["input_ids"]
        with torch.no_grad():
            out = model(torch.tensor([ids]), output_hidden_states=True)
            states = [h[0, len(ids) - 2] for h in out.hidden_states]
            logits = torch.stack([*(head(norm(s)) for s in states[:-1]), out.logits[0, len(ids) - 2]]).double()
        probs = torch.softmax(logits, -1).numpy()
        truth, final = ids[-1], int(probs[-1].argmax())
        np.testing.assert_array_equal(lens.top_id[row], probs.argmax(1))
        np.testing.assert_allclose(lens.true_prob[row], probs[:, truth], atol=1e-5)
        np.testing.assert_allclose(lens.final_prob[row], probs[:, final], atol=1e-5)
        np.testing.assert_allclose(lens.entropy[row], -(probs * np.log(probs)).sum(1), atol=1e-4)
        kl = (probs[-1] * (np.log(probs[-1]) - np.log(probs))).sum(1)
        np.testing.assert_allclose(lens.kl_to_final[row], kl, atol=1e-4)
        np.testing.assert_array_equal(lens.true_rank[row], 1 + (probs > probs[:, [truth]]).sum(1))
    assert lens.model_error < 1e-5
    assert len(lens.to_frame()) == len(kept) * 4


def test_needs_hidden_and_the_weights_of_the_run(run, tiny_folder) -> None:
    without = TraceStore(run("gpt2", capture=("resid",)))
    with pytest.raises(NotCapturedError, match=r"`hidden` among the words of --capture"):
        logit_lens(without, load_unembedding(without))
    with pytest.raises(ModelError, match="not those the run was made with"):
        load_unembedding(without, tiny_folder("llama"))


def _lens(top: list[list[int]]) -> LensTrajectories:
    ids = np.asarray(top, np.int32)
    flat = np.zeros(ids.shape, np.float32)
    names = tuple(f"e{i}" for i in range(len(ids)))
    return LensTrajectories(names, np.ones(len(ids), bool), ids, flat, flat, ids, flat, flat, 0.0)


def test_decision_depth_of_known_trajectories() -> None:
    depth = decision_depth(_lens([[5, 5, 5, 5], [1, 5, 5, 5], [5, 1, 5, 5], [5, 5, 1, 5], [1, 2, 3, 4]]))
    assert depth.stable_from.tolist() == [0, 1, 2, 3, 3]
    assert depth.flips.tolist() == [0, 1, 2, 2, 3]
    assert depth.n_layers == 3
    assert depth.to_frame()["stable_from"].tolist() == [0, 1, 2, 3, 3]


def test_trajectories_of_different_shapes_are_refused() -> None:
    good = _lens([[1, 2]])
    with pytest.raises(ValueError, match="need"):
        LensTrajectories(
            ("a", "b"), good.correct, good.top_id, good.true_prob, good.final_prob, good.true_rank,
            good.entropy, good.kl_to_final, 0.0,
        )  # fmt: skip
