"""Decisions between answers: the columns of a run read right, and the lens by choice against plain transformers."""

from pathlib import Path

import numpy as np
import plain
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.runs import CHOICES, build_run, copy_run, reseal
from transformers import AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.by_choice import lens_by_choice
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import Unembedding, load_unembedding
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import ModelError, UsageError


def test_the_lens_by_choice_equals_plain_transformers(questions) -> None:
    store = TraceStore(questions)
    by_choice = lens_by_choice(store, load_unembedding(store))
    model, tokenizer = plain.load(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    for row in range(6):
        outcome, ids = store.tokens.iloc[row], tokenizer(store.text(row))["input_ids"]
        choices = list(outcome["choice_token_ids"])
        with torch.no_grad():
            out = model(torch.tensor([ids]), output_hidden_states=True)
            before = model.lm_head(model.transformer.ln_f(torch.stack([h[0, -1] for h in out.hidden_states[:-1]])))
            logits = torch.cat([before, out.logits[:, -1]])[:, choices].double()
        np.testing.assert_allclose(by_choice.logits[row], logits.numpy(), atol=1e-3)
        np.testing.assert_allclose(by_choice.probs[row], torch.softmax(logits, 1).numpy(), atol=1e-4)
        assert by_choice.labels[row] == tuple(outcome["choice_labels"])
        assert (by_choice.correct_idx[row], by_choice.pred_idx[row]) == (
            outcome["correct_idx"],
            int(logits[-1].argmax()),
        )
    assert by_choice.is_correct.tolist() == store.tokens["is_correct"].tolist()
    assert by_choice.model_error < 1e-5 and by_choice.n_layers == store.L


def test_the_lens_follows_the_answers_tokens(questions) -> None:
    store = TraceStore(questions)
    head = load_unembedding(store)
    lens, by_choice, table = logit_lens(store, head), lens_by_choice(store, head), store.tokens
    every = np.arange(store.n)
    np.testing.assert_allclose(lens.true.logit, by_choice.logits[every, :, by_choice.correct_idx], atol=1e-4)
    np.testing.assert_allclose(lens.pred.logit, by_choice.logits[every, :, by_choice.pred_idx], atol=1e-4)
    assert lens.correct.tolist() == table["is_correct"].tolist()
    for row, outcome in table.iterrows():
        order = np.argsort(-outcome["choice_logits"])
        competitor = order[1] if order[0] == outcome["correct_idx"] else order[0]
        assert lens.competitor_id[row] == outcome["choice_token_ids"][competitor]


def _without_answers(run: Path, target: Path) -> Path:
    """A copy of a run as of a test split: no answer is known."""
    folder = copy_run(run, target)
    table = pq.read_table(folder / "tokens.parquet")
    for name, values in (("correct_idx", [-1] * table.num_rows), ("is_correct", [None] * table.num_rows)):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, folder / "tokens.parquet", write_page_checksum=True)
    reseal(folder)
    return folder


def test_without_an_answer_the_prediction_is_followed(questions, tmp_path: Path) -> None:
    store = TraceStore(_without_answers(questions, tmp_path / "run"))
    head, known = load_unembedding(store), TraceStore(questions)
    lens, by_choice = logit_lens(store, head), lens_by_choice(store, head)
    assert not lens.known.any() and not lens.correct.any()
    assert np.isnan(lens.true.logit).all() and np.isnan(lens.true.prob).all() and (lens.true.rank == -1).all()
    np.testing.assert_array_equal(lens.pred.logit, logit_lens(known, head).pred.logit)
    assert lens.to_frame()["correct"].isna().all() and by_choice.to_frame()["is_true"].isna().all()
    second = [
        ids[np.argsort(-scores)[1]]
        for ids, scores in zip(known.tokens["choice_token_ids"], known.tokens["choice_logits"], strict=True)
    ]
    assert lens.competitor_id.tolist() == second
    result = direct_attribution(store, head)
    np.testing.assert_array_equal(result.target_id, lens.pred_id)
    assert not result.known.any() and (result.difference >= 0).all() and result.sum_error < 1e-3


def test_a_lens_by_choice_needs_answers_and_the_right_head(questions, traced, tmp_path: Path) -> None:
    store = TraceStore(traced("gpt2"))
    with pytest.raises(UsageError, match="it predicts next tokens"):
        lens_by_choice(store, load_unembedding(store))
    asked = TraceStore(questions)
    with pytest.raises(ModelError, match="not the model of the run"):
        lens_by_choice(asked, Unembedding(torch.nn.Identity(), torch.nn.Linear(asked.d_model, 5000)))
    build_run(tmp_path / "encoder", CHOICES)
    with pytest.raises(UsageError, match="neither next_pos nor choice_token_ids"):
        decisions_of(TraceStore(tmp_path / "encoder"))


def test_decisions_of_a_next_token_run(demo_run) -> None:
    store = TraceStore(demo_run())
    found, table = decisions_of(store), store.tokens
    assert found.position.tolist() == (table["n_tokens"] - 2).tolist()
    assert found.true_id.tolist() == [ids[n - 1] for ids, n in zip(table["input_ids"], table["n_tokens"], strict=True)]
    assert found.correct.tolist() == table["next_correct"].tolist()
    right = found.correct
    np.testing.assert_allclose(found.difference[right], table["next_margin"][right])
    odds = np.log(table["next_true_prob"] / table["next_pred_prob"])
    np.testing.assert_allclose(found.difference[~right], odds[~right], rtol=1e-5)
    assert found.choices is None
