"""Workflow B on tiny decoders: the answer's score is the logit of its own token at the end of the prompt."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from support.models import tiny_decoder
from support.runs import reseal
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from decision_traces import TraceStore
from decision_traces.analysis.decisions import text_note
from decision_traces.analysis.lens.by_choice import lens_by_choice
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.cli import attribution, lens
from decision_traces.data import tinyworld
from decision_traces.data.example import Example
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import DataError, ModelError, UsageError
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.answer_texts import answer_tokens
from decision_traces.format.columns import TOKEN_COLUMNS
from decision_traces.store.reading.results import find_result
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.tasks.prompt_choice import ANSWER_COLUMNS
from decision_traces.tokens import encode

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
    return write_questions(tmp_path / "data", QUESTIONS)


def write_questions(root: Path, questions: list[tuple[str, list[str], str]]) -> Path:
    folder = root / "commonsenseqa"
    folder.mkdir(parents=True)
    for name, answered in (("dev_rand_split.jsonl", True), ("test_rand_split_no_answers.jsonl", False)):
        records = []
        for i, (stem, choices, key) in enumerate(questions):
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


def word_folder(folder: Path, family: str, questions: list[tuple[str, list[str], str]] = QUESTIONS) -> Path:
    """A decoder whose tokenizer has a token for each word with the space before it, as sentencepiece has."""
    words = sorted({w for q, cs, _ in questions for w in prompt(q, cs).replace("\n", " \n ").split(" ") if w})
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


LONG = {"gpt2": {"n_positions": 160}, "llama": {"max_position_embeddings": 160}}
"""Room for an answer behind the prompts, which have a token a byte."""


@pytest.mark.parametrize("family", LONG)
def test_texts_are_scored_whole(family: str, tiny_folder, data: Path, tmp_path: Path) -> None:
    """Choices that begin alike ("a tree", "a shoe") are told apart: every token counts, as in plain transformers."""
    folder = tiny_folder(family, **LONG[family])
    store = run(folder, tmp_path / "run", data, answers="text")
    assert not failures(validate_run(store.run_dir))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row, (stem, choices, key) in enumerate(QUESTIONS):
        begin, sums, means, first = len(tokenizer(prompt(stem, choices))["input_ids"]), [], [], []
        found = store.tokens.iloc[row]
        for choice in choices:
            ids = tokenizer(f"{prompt(stem, choices)} {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            logs = logits.double().log_softmax(-1)[range(len(ids) - 1), ids[1:]][begin - 1 :]
            assert found["choice_text_ids"][len(sums)].tolist() == ids[begin:]
            sums.append(float(logs.sum()))
            means.append(float(logs.mean()))
            first.append(float(logits[begin - 1, ids[begin]]))
        np.testing.assert_allclose(found["choice_logprob_sum"], sums, rtol=1e-5)
        np.testing.assert_allclose(found["choice_logprob_mean"], means, rtol=1e-5)
        np.testing.assert_allclose(found["choice_token_logits"], first, atol=2e-5)
        np.testing.assert_array_equal(found["choice_logits"], found["choice_logprob_sum"])
        probs = np.exp(np.array(sums) - max(sums))
        np.testing.assert_allclose(found["choice_probs"], probs / probs.sum(), atol=1e-4)
        assert found["pred_idx"] == np.argmax(sums)
        assert found["is_correct"] == (np.argmax(sums) == "ABCDE".index(key))
    assert "the log-probability of its whole text" in store.meta["conventions"]["answer"]


def test_scoring_texts_changes_no_array(tiny_folder, data: Path, tmp_path: Path) -> None:
    letters, texts = (
        run(tiny_folder("gpt2", **LONG["gpt2"]), tmp_path / answers, data, answers=answers, capture=("attn", "hidden"))
        for answers in ("letter", "text")
    )
    assert letters.arrays() == texts.arrays()
    for name in letters.arrays():
        np.testing.assert_array_equal(letters.array(name).read(), texts.array(name).read())
    assert letters.meta["arrays"] == texts.meta["arrays"]


def test_a_lens_sees_the_first_tokens_of_texts(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    questions = [
        ("What is wet?", ["a tree", "a shoe", "soup", "milk", "rain"], "C"),
        ("Where do fish live?", ["the sea", "a tree", "my shoe", "your book", "one sky"], "A"),
    ]
    folder = word_folder(tmp_path / "model", "gpt2", questions)
    own = write_questions(tmp_path / "own", questions)
    store = run(folder, tmp_path / "run", own, answers="text", capture=("hidden", "resid"))
    by_choice = lens_by_choice(store, load_unembedding(store, folder))
    first = np.exp(np.asarray(store.tokens["choice_token_logits"][1]))
    np.testing.assert_allclose(by_choice.probs[:, -1], [first / first.sum()], atol=1e-5)
    assert by_choice.example_id == (store.tokens["example_id"][1],)
    assert by_choice.pred_idx.tolist() == [store.tokens["pred_idx"][1]] and by_choice.correct_idx.tolist() == [0]
    assert "of 1 questions in which these differ" in text_note(store)
    assert "1 questions are left out" in text_note(store)
    for command in (lens, attribution):
        with pytest.raises(SystemExit) as stopped:
            command.main([str(store.run_dir)])
        assert stopped.value.code == 0 and "1 questions are left out" in capsys.readouterr().out
    result = find_result(store.results, "lens")
    candidates = zarr.open_group(result.folder / "lens.zarr", mode="r")["candidates"][:, 0]
    assert candidates[1][1:6].tolist() == store.tokens["choice_token_ids"][1].tolist()
    assert candidates[1][0] == store.tokens["choice_token_ids"][1][0]
    alike = run(word_folder(tmp_path / "all", "gpt2"), tmp_path / "alike", data, answers="text")
    with pytest.raises(DataError, match="In every question two answers begin with the same token"):
        lens_by_choice(alike, load_unembedding(alike, tmp_path / "all"))


def test_damaged_scores_of_texts_are_found(tiny_folder, data: Path, tmp_path: Path) -> None:
    store = run(tiny_folder("gpt2", **LONG["gpt2"]), tmp_path / "run", data, answers="text")
    path = store.run_dir / "tokens.parquet"
    whole = pq.read_table(path)
    for column, check in (
        ("choice_logprob_mean", "log-probabilities of answers"),
        ("choice_logprob_sum", "scores of answers"),
        ("choice_token_ids", "first tokens of answers"),
    ):
        values = whole[column].to_pylist()
        values[1][2] += 1
        at = whole.column_names.index(column)
        field = whole.schema.field(column)
        pq.write_table(whole.set_column(at, field, pa.array(values, field.type)), path)
        reseal(store.run_dir)
        assert check in {f.name for f in failures(validate_run(store.run_dir))}


def test_an_answer_beyond_the_context_is_refused(tiny_folder, data: Path, tmp_path: Path) -> None:
    """The prompts fit the 96 tokens of this model; with an answer behind it one of them does not."""
    with pytest.raises(UsageError, match="has 97 tokens with an answer behind it, and the model was built for 96"):
        run(tiny_folder("gpt2"), tmp_path / "run", data, answers="text")
    assert not list(tmp_path.glob("*run*")), "nothing is left that would be in the way of the next try"


def test_labels_that_begin_alike_are_refused(tiny_folder) -> None:
    """Such letters cannot be scored; texts can."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt2"))
    examples = [Example("csqa-0", "Answer:", {"choice_labels": ["A", "A"], "csqa_choices": ["ab", "ac"]})]
    encodings = encode(tokenizer, ["Answer:"], None)
    with pytest.raises(ModelError, match="two choices of csqa-0 begin with the same token"):
        answer_tokens(tokenizer, examples, encodings, "letter")
    found = answer_tokens(tokenizer, examples, encodings, "text")
    assert found.ids == [[tokenizer(" ab")["input_ids"], tokenizer(" ac")["input_ids"]]]
