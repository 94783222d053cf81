"""Workflow B on tiny decoders: the answer's score is the logit of its own token at the end of the prompt."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from decision_traces import TraceStore
from decision_traces.columns import ANSWER_COLUMNS, TOKEN_COLUMNS
from decision_traces.data import tinyworld
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import ModelError, UsageError
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.store.validate import failures, validate_run
from decision_traces.testing.models import tiny_decoder

QUESTIONS = [
    ("Where do fish live?", ["the sea", "a tree", "the sky", "a shoe", "a book"], "A"),
    ("What cuts bread?", ["soup", "a knife", "a cloud", "milk", "a song"], "B"),
    ("Who heals the sick?", ["a stone", "a fox", "a doctor", "rain", "paint"], "C"),
]


def prompt(question: str, choices: list[str]) -> str:
    """The form that the README states, written out here once more."""
    a, b, c, d, e = choices
    return f"Question: {question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nE. {e}\nAnswer:"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "commonsenseqa"
    folder.mkdir(parents=True)
    for name, answered in (("dev_rand_split.jsonl", True), ("test_rand_split_no_answers.jsonl", False)):
        records = []
        for i, (stem, choices, key) in enumerate(QUESTIONS):
            listed = [{"label": label, "text": text} for label, text in zip("ABCDE", choices, strict=True)]
            asked = {"question_concept": "x", "choices": listed, "stem": stem}
            records.append({"id": f"q{i}", "question": asked, **({"answerKey": key} if answered else {})})
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return folder.parent


def run(folder: Path, out: Path, data: Path | None = None, **options) -> TraceStore:
    settings = {"capture": ("hidden",), "dtype": "float32", **options}
    return TraceStore(
        extract_answers(AnswerConfig(model="tiny", model_path=folder, data_dir=data, out_dir=out, **settings))
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_scores_are_the_letters_logits_at_the_end_of_the_prompt(
    family: str, tiny_folder, data: Path, tmp_path: Path
) -> None:
    folder = word_folder(tmp_path / "model", family)
    store = run(folder, tmp_path / "run", data)
    assert not failures(validate_run(store.run_dir))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = [tokenizer.convert_tokens_to_ids(f"▁{x}") for x in "ABCDE"]
    for row, (stem, choices, key) in enumerate(QUESTIONS):
        ids = tokenizer(prompt(stem, choices))["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        found = store.tokens.iloc[row]
        assert found["text"] == prompt(stem, choices)
        assert found["n_tokens"] == len(ids)
        assert found["answer_pos"] == len(ids) - 1
        assert list(found["choice_token_ids"]) == letters
        scores = logits[letters].numpy()
        np.testing.assert_allclose(found["choice_logits"], scores, atol=2e-5)
        np.testing.assert_allclose(found["choice_probs"], np.exp(scores) / np.exp(scores).sum(), atol=1e-5)
        assert found["choice_mass"] == pytest.approx(float(logits.softmax(-1)[letters].sum()), abs=1e-5)
        assert found["pred_idx"] == scores.argmax()
        assert found["pred_label"] == "ABCDE"[scores.argmax()]
        assert (found["answerKey"], found["correct_idx"]) == (key, "ABCDE".index(key))
        assert found["is_correct"] == (found["pred_idx"] == found["correct_idx"])
    assert store.meta["choice_accuracy"] == pytest.approx(store.tokens["is_correct"].astype(float).mean())
    assert "with a space in front" in store.meta["conventions"]["answer"]


def word_folder(folder: Path, family: str) -> Path:
    """A decoder whose tokenizer has a token for each word with the space before it, as sentencepiece has."""
    words = sorted({w for q, cs, _ in QUESTIONS for w in prompt(q, cs).replace("\n", " \n ").split(" ") if w})
    vocabulary = {t: i for i, t in enumerate(["<e>", "<u>", "▁", *(f"▁{w}" for w in [*words, *"ABCDE"]), *words])}
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(dict.fromkeys(vocabulary))}, unk_token="<u>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<e>")
    tokenizer.save_pretrained(folder)
    tiny_decoder(family).save_pretrained(folder)
    return folder


def test_a_byte_tokenizer_takes_the_letter_without_a_space(tiny_folder, data: Path, tmp_path: Path) -> None:
    """Behind the prompt, " A" is two tokens, so the letter alone is scored, and the meta says so."""
    store = run(tiny_folder("gpt2"), tmp_path / "run", data)
    assert "without a space in front" in store.meta["conventions"]["answer"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt2"))
    assert list(store.tokens["choice_token_ids"][0]) == tokenizer("ABCDE")["input_ids"]


def test_columns_and_meta(tiny_folder, data: Path, tmp_path: Path) -> None:
    store = run(tiny_folder("gpt2"), tmp_path / "run", data, capture=("attn", "qkv", "hidden", "resid"))
    names = pq.read_schema(store.run_dir / "tokens.parquet").names
    assert names == [c.name for c in (*TOKEN_COLUMNS, *ANSWER_COLUMNS) if not c.optional]
    assert (store.meta["arch"], store.meta["objective"], store.meta["n_choices"]) == ("dec", "csqa_choice", None)
    assert store.tokens["csqa_choices"][1].tolist() == QUESTIONS[1][1]
    longest = max(len(prompt(q, c).encode()) for q, c, _ in QUESTIONS)
    assert store.T == longest == store.meta["max_seq_len"]
    at = store.gather("dec_hidden", layer=3, position="next")
    assert np.array_equal(at, [store.hidden(r, layer=3)[store.tokens["answer_pos"][r]] for r in range(3)])


def test_without_answers_everything_else_works(tiny_folder, data: Path, tmp_path: Path) -> None:
    store = run(tiny_folder("gpt2"), tmp_path / "run", data, split="test")
    assert store.tokens["answerKey"].isna().all() and store.tokens["is_correct"].isna().all()
    assert store.tokens["correct_idx"].tolist() == [-1, -1, -1]
    assert store.tokens["pred_label"].isin(list("ABCDE")).all()
    assert (store.meta["n_answers"], "choice_accuracy" in store.meta) == (0, False)
    assert not failures(validate_run(store.run_dir))


def test_a_prompt_that_would_be_cut_is_refused(tiny_folder, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--max_seq_len 80: \d of 3 prompts have more than 80 tokens"):
        run(tiny_folder("gpt2"), tmp_path / "run", data, max_seq_len=80)
    assert not list(tmp_path.glob("*run*"))


def test_the_embedded_model_answers_with_the_choice_itself(tmp_path: Path) -> None:
    store = run(MODEL_DIR, tmp_path / "run", dataset="tinyworld", limit=40, answers="text")
    assert store.meta["choice_accuracy"] > 0.9
    first, question = store.tokens.iloc[0], next(iter(tinyworld.questions("validation", 1)))
    assert first["example_id"] == question.example_id
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert [tokenizer.decode([i]).strip() for i in first["choice_token_ids"]] == question.fields["choices"]


def test_choices_that_begin_alike_cannot_be_told_apart_by_text(tiny_folder, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"two choices of csqa-validation-000000-\w+ begin with the same token"):
        run(tiny_folder("gpt2"), tmp_path / "run", data, answers="text")
    assert not list(tmp_path.glob("*run*")), "nothing is left that would be in the way of the next try"
