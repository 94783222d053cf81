"""Attribution in encoders against autograd through a plain model with norms held fixed and parts that stand alone."""

from pathlib import Path

import numpy as np
import plain_encoders
import pytest
from support.encoders import ENCODERS

from decision_traces import TraceStore
from decision_traces.analysis.attribution.encoders import encoder_attribution
from decision_traces.analysis.lens.unembedding import load_run_model
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice


def run(folder: Path, out: Path, **options) -> TraceStore:
    settings = {"dataset": "tinyworld", "limit": 5, "capture": ("hidden",), "dtype": "float32", **options}
    config = MultipleChoiceConfig(model="tiny", model_path=folder, out_dir=out, **settings)
    return TraceStore(extract_multiple_choice(config))


def check_against_autograd(store: TraceStore, folder: Path, rows: list[int], tolerance: float) -> None:
    found = encoder_attribution(store, load_run_model(store))
    for row in rows:
        question, choices = store.tokens["question"][row], store.tokens["choice_texts"][row]
        target, competitor = found.target_id[row], found.competitor_id[row]
        assert target == store.tokens["label_idx"][row]
        assert competitor == max(
            (i for i in range(5) if i != target), key=lambda i: store.tokens["choice_logits"][row][i]
        )
        ours, theirs = (plain_encoders.bert_parts(folder, question, choices[i]) for i in (target, competitor))
        for name in ("embed", "attn", "mlp"):
            np.testing.assert_allclose(
                getattr(found, name)[row], ours[name] - theirs[name], atol=tolerance, err_msg=name
            )


def test_parts_of_a_bert_are_gradient_times_write(tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tiny_encoder_folder("bert")
    check_against_autograd(run(folder, tmp_path / "run"), folder, [0, 3], 1e-4)


@pytest.mark.parametrize("family", ENCODERS)
def test_parts_add_up_to_the_difference_of_the_scores(family: str, tiny_encoder_folder, tmp_path: Path) -> None:
    store = run(tiny_encoder_folder(family), tmp_path / "run")
    found = encoder_attribution(store, load_run_model(store))
    total = found.embed + found.attn.sum(1) + found.mlp.sum(1) + found.remainder
    logits = np.stack(list(store.tokens["choice_logits"]))
    rows = np.arange(5)
    np.testing.assert_allclose(total, logits[rows, found.target_id] - logits[rows, found.competitor_id], atol=1e-4)
    assert found.attn.shape == found.mlp.shape == (5, 3)
    assert np.abs(found.attn).max() > 1e-6 and np.abs(found.mlp).max() > 1e-6
