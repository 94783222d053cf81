"""The lens at masked tokens, through the whole head, against plain transformers: modules by name, one text alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.encoders import save_tiny_masked_encoder
from transformers import AutoModelForMaskedLM

from decision_traces import TraceStore
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.cli import lens as lens_command
from decision_traces.errors import DataError
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures, validate_run

HEADS: dict[str, Callable] = {
    "bert": lambda model, states: model.cls(states),
    "modernbert": lambda model, states: model.decoder(model.head(model.model.final_norm(states))),
}
TEXTS = ("A somewhat longer line with <m> in it.", "abc", "The cat sat on the <m> and the <m>.")


def _traced(family: str, folder: Path, **options) -> Path:
    (folder / "lines.txt").write_text("\n".join(TEXTS))
    model = save_tiny_masked_encoder(folder / family, family)
    return extract_texts(
        TextConfig(
            model="tiny", model_path=model, text_file=folder / "lines.txt", out_dir=folder / "run", dtype="float32",
            **options,
        )
    )  # fmt: skip


@pytest.mark.parametrize("family", HEADS)
def test_equals_the_head_applied_by_hand(family: str, tmp_path: Path) -> None:
    store = TraceStore(_traced(family, tmp_path))
    found = logit_lens(store, load_unembedding(store))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / family).eval()
    done = 0
    for row in range(store.n):
        told = store.tokens.iloc[row]
        ids = torch.tensor([list(told["input_ids"][: told["n_tokens"]])])
        with torch.no_grad():
            seen = model(ids, output_hidden_states=True)
            by_hand = [HEADS[family](model, state)[0] for state in seen.hidden_states[:-1]]
        for position, predicted in zip(told["masked_pos"], told["masked_pred_ids"], strict=True):
            assert (found.example_id[done], found.position[done]) == (told["example_id"], position)
            depths = torch.stack([*(logits[position] for logits in by_hand), seen.logits[0, position]]).numpy()
            np.testing.assert_allclose(found.pred.logit[done], depths[:, predicted], atol=1e-4)
            np.testing.assert_array_equal(found.top_id[done], depths.argmax(1))
            done += 1
    assert done == len(found.example_id) > 3 and found.model_error < 1e-5
    own = found.true_id < 0
    assert own.sum() == 3 and not found.known[own].any()  # what stands behind a text's own masks


def test_the_command_leaves_a_row_for_every_mask_and_depth(tmp_path: Path) -> None:
    run = _traced("bert", tmp_path)
    with pytest.raises(SystemExit) as ended:
        lens_command.main([str(run), "--quiet"])
    assert not ended.value.code
    frame = pd.read_parquet(run / "analysis" / "lens" / "lens.parquet").query("stage == 'hidden' and depth == 3")
    table = TraceStore(run).tokens
    assert frame["position"].tolist() == [p for row in table["masked_pos"] for p in row]
    assert frame["pred_id"].tolist() == [i for row in table["masked_pred_ids"] for i in row]
    assert failures(validate_run(run)) == []


def test_without_a_mask_there_is_nothing_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.TEXTS", ("abc", "def"))
    store = TraceStore(_traced("bert", tmp_path, mask_prob=0.0))
    with pytest.raises(DataError, match="none of its tokens is masked"):
        decisions_of(store)
