"""Trained weights on CommonsenseQA: an encoder choice by choice, a decoder at the end of its prompt, and analyses.

Everything is compared with plain transformers run on one choice or one prompt alone.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import plain
import plain_encoders
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.attribution.encoders import encoder_attribution
from decision_traces.analysis.lens.by_choice import lens_by_choice
from decision_traces.analysis.lens.encoders import encoder_lens_by_choice, load_head
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_run_model, load_unembedding
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.real

CAPTURES = ("attn", "qkv", "hidden", "resid")


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> list[dict]:
    lines = (shared_data / "commonsenseqa" / "dev_rand_split.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:6]]


@pytest.fixture(scope="module")
def minilm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a multiple-choice head of random weights, drawn once: the body is trained."""
    source = smollm2.parent / "all-minilm-l6-v2"
    folder = tmp_path_factory.mktemp("minilm") / "with-head"
    torch.manual_seed(3)
    model = AutoModelForMultipleChoice.from_pretrained(source)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(minilm: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    config = MultipleChoiceConfig(
        model_path=minilm,
        data_dir=shared_data,
        limit=6,
        capture=CAPTURES,
        dtype="float32",
        out_dir=tmp_path_factory.mktemp("enc") / "run",
    )
    return TraceStore(extract_multiple_choice(config))


def test_minilm_equals_each_choice_alone(encoded: TraceStore, minilm: Path, questions: list[dict]) -> None:
    assert not failures(validate_run(encoded.run_dir))
    model, tokenizer = plain_encoders.load(minilm)
    for row in (0, 5):
        asked = questions[row]["question"]
        scores = []
        for c, choice in enumerate(asked["choices"]):
            expected = plain_encoders.run_choice(model, tokenizer, "bert", asked["stem"], choice["text"])
            found = {
                "attn": encoded.mcq_attn(row, c, trim=True),
                "hidden": encoded.mcq_hidden(row, c, trim=True),
                **{s: encoded.mcq_resid(row, c, stage=s, trim=True) for s in ("pre_attn", "post_attn", "post_mlp")},
                **{w: encoded.mcq_qkv(row, c, which=w, trim=True) for w in "qkv"},
            }
            for name, stored in found.items():
                right = expected.qkv[name] if name in expected.qkv else getattr(expected, name)
                assert plain.worst_difference(stored, right) < 1e-4, (name, row, c)
            scores.append(expected.score)
        np.testing.assert_allclose(encoded.tokens["choice_logits"][row], scores, atol=1e-4)
        assert encoded.tokens["answerKey"][row] == questions[row]["answerKey"]


def test_minilm_lens_by_choice_is_the_model_with_fewer_layers(
    encoded: TraceStore, minilm: Path, questions: list[dict]
) -> None:
    by_choice = encoder_lens_by_choice(encoded, load_head(encoded))
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for depth in (0, 2, 5):
        model = AutoModelForMultipleChoice.from_pretrained(minilm).eval()
        model.bert.encoder.layer = model.bert.encoder.layer[:depth]
        asked = questions[1]["question"]
        texts = [choice["text"] for choice in asked["choices"]]
        batch = tokenizer([asked["stem"]] * 5, texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**{k: v[None] for k, v in batch.items()}).logits[0].numpy()
        np.testing.assert_allclose(by_choice.logits[1, depth], expected, atol=1e-4)


def test_minilm_attribution_is_gradient_times_write(encoded: TraceStore, minilm: Path, questions: list[dict]) -> None:
    found = encoder_attribution(encoded, load_run_model(encoded))
    for row in (0, 4):
        asked = questions[row]["question"]
        texts = [choice["text"] for choice in asked["choices"]]
        target, competitor = found.target_id[row], found.competitor_id[row]
        assert target == "ABCDE".index(questions[row]["answerKey"])
        ours, theirs = (plain_encoders.bert_parts(minilm, asked["stem"], texts[i]) for i in (target, competitor))
        for name in ("embed", "attn", "mlp"):
            expected = ours[name] - theirs[name]
            np.testing.assert_allclose(getattr(found, name)[row], expected, atol=1e-3, err_msg=name)
    assert found.sum_error < 1e-4


@pytest.fixture(scope="module")
def answered(smollm2: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    config = AnswerConfig(
        model_path=smollm2,
        data_dir=shared_data,
        limit=6,
        capture=("hidden", "resid"),
        dtype="float32",
        store_unembed=True,
        out_dir=tmp_path_factory.mktemp("dec") / "run",
    )
    return TraceStore(extract_answers(config))


def test_smollm2_answers_lens_by_choice_and_attribution(
    answered: TraceStore, smollm2: Path, questions: list[dict], tmp_path: Path
) -> None:
    assert not failures(validate_run(answered.run_dir))
    unembedding = load_unembedding(answered)  # the one in the run: the model itself is not asked
    lens, by_choice = logit_lens(answered, unembedding), lens_by_choice(answered, unembedding)
    parts = direct_attribution(answered, unembedding)
    model, tokenizer = plain.load(smollm2), AutoTokenizer.from_pretrained(smollm2)
    letters = [tokenizer(f" {x}", add_special_tokens=False)["input_ids"][0] for x in "ABCDE"]
    weight, norm = model.lm_head.weight.detach().double(), model.model.norm
    for row in (0, 4):
        asked = questions[row]["question"]
        listed = "\n".join(f"{c['label']}. {c['text']}" for c in asked["choices"])
        ids = tokenizer(f"Question: {asked['stem']}\n{listed}\nAnswer:")["input_ids"]
        expected = plain.run_alone(model, "llama", ids)
        scores = expected.logits[-1][letters].numpy()
        np.testing.assert_allclose(answered.tokens["choice_logits"][row], scores, atol=5e-3)
        assert list(answered.tokens["choice_token_ids"][row]) == letters
        right = "ABCDE".index(questions[row]["answerKey"])
        for depth in (3, 17, 30):
            state = torch.from_numpy(expected.hidden[depth, -1])
            with torch.no_grad():
                logits = model.lm_head(state if depth == 30 else norm(state)).double()
            np.testing.assert_allclose(by_choice.logits[row, depth], logits[letters].numpy(), atol=5e-3)
            assert lens.top_id[row, depth] == int(logits.argmax())
            prob = float(logits.softmax(-1)[letters[right]])
            assert lens.true.prob[row, depth] == pytest.approx(prob, abs=1e-4)
        competitor = max((i for i in range(5) if i != right), key=lambda i: scores[i])
        # RMSNorm, frozen at the last residual: x * gain / rms.
        last = torch.from_numpy(expected.post_mlp[-1, -1]).double()
        gain = norm.weight.detach().double() / (last.square().mean() + norm.variance_epsilon).sqrt()
        direction = gain * (weight[letters[right]] - weight[letters[competitor]])
        writes = {
            "attn": expected.post_attn[:, -1] - expected.pre_attn[:, -1],
            "mlp": expected.post_mlp[:, -1] - expected.post_attn[:, -1],
        }
        for name, written in writes.items():
            np.testing.assert_allclose(
                getattr(parts, name)[row], torch.from_numpy(written).double() @ direction, atol=2e-2, err_msg=name
            )
        total = parts.embed[row] + parts.attn[row].sum() + parts.mlp[row].sum() + parts.remainder[row]
        assert total == pytest.approx(scores[right] - scores[competitor], abs=2e-2)


def test_the_test_split_has_no_answers(minilm: Path, shared_data: Path, tmp_path: Path) -> None:
    config = MultipleChoiceConfig(
        model_path=minilm, data_dir=shared_data, split="test", limit=3, capture=("hidden",), out_dir=tmp_path / "run"
    )
    store = TraceStore(extract_multiple_choice(config))
    assert store.tokens["is_correct"].isna().all() and (store.tokens["label_idx"] == -1).all()
    assert not failures(validate_run(store.run_dir))
    shutil.rmtree(store.run_dir)
