"""Checkpoints of many kinds through `extract`: traced as plain transformers runs them, or refused in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.encoders import pair_tokenizer
from tokenizers import Regex, normalizers

from decision_traces import TraceStore
from decision_traces.errors import CaptureError, ModelError, UnsupportedArchitecture, UsageError
from decision_traces.extract.texts import TextConfig, extract_texts

TEXTS = ["The cat sat on the mat.", "a", "A line of text, longer."]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def run(folder: Path, texts: Path, **options: Any) -> TraceStore:
    settings = {"capture": ("hidden",), "dtype": "float32", "batch_size": 1, **options}
    return TraceStore(
        extract_texts(TextConfig(model_path=folder, text_file=texts, out_dir=texts.parent / "run", **settings))
    )


@pytest.mark.parametrize(
    ("plain", "family", "options"),
    [
        (hf.Gemma3TextModel, "gemma3", {"use_bidirectional_attention": True}),
        (hf.MPNetModel, "mpnet", {}),
        (hf.T5EncoderModel, "t5", {}),
        (hf.GPT2Model, "gpt2", {}),
    ],
)
def test_a_model_without_a_head_is_traced_as_plain_transformers_runs_it(
    plain: Any, family: str, options: dict, checkpoint, texts: Path
) -> None:
    folder = checkpoint(plain, family, **options)
    store = run(folder, texts)
    model, tokenizer = plain.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    assert store.meta["objective"] == "encode" and store.meta["model_class"] == plain.__name__
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected = torch.stack([state[0] for state in out.hidden_states]).numpy()
        np.testing.assert_allclose(store.hidden(row, side="enc", trim=True), expected, atol=2e-6, rtol=0)


def test_weights_that_are_not_used_are_said_and_kept_in_the_meta(checkpoint, texts: Path) -> None:
    said: list[str] = []
    folder = checkpoint(hf.AutoModelForCausalLM, "gpt2", {"n_layer": 2})
    config = TextConfig(model_path=folder, text_file=texts, out_dir=texts.parent / "run", capture=("hidden",))
    store = TraceStore(extract_texts(config, _Listener(said)))
    assert store.L == 2 and len(store.about.unused_weights) == 11
    assert "WARNING: 11 weights of the checkpoint are not used (transformer.h.2); the meta names all of them" in said


def test_an_unused_pooler_is_no_warning(checkpoint, texts: Path) -> None:
    said: list[str] = []
    folder = checkpoint(hf.AutoModelForPreTraining, "bert")
    config = TextConfig(model_path=folder, text_file=texts, out_dir=texts.parent / "run", capture=("hidden",))
    extract_texts(config, _Listener(said))
    assert "4 weights of the checkpoint are not used (bert, cls); the meta names all of them" in said
    assert not [line for line in said if "WARNING" in line]


def test_a_decoder_that_reads_later_tokens_is_sent_to_its_task(checkpoint, texts: Path) -> None:
    folder = checkpoint(hf.Gemma3ForCausalLM, "gemma3", use_bidirectional_attention=True, hidden_size=32)
    with pytest.raises(
        CaptureError, match=r"reads later tokens and is no decoder: `decision-traces extract --task enc"
    ):
        run(folder, texts)


def test_a_decoder_without_a_start_token_is_one_sentence(checkpoint, texts: Path) -> None:
    folder = checkpoint(hf.AutoModelForSeq2SeqLM, "t5", decoder_start_token_id=None)
    with pytest.raises(
        ModelError, match=r"cannot say what its decoder reads .*decoder_start_token_id has to be defined"
    ):
        run(folder, texts, targets_file=texts)


def test_a_model_that_takes_no_short_rows_is_refused_with_its_reason(texts: Path, tmp_path: Path) -> None:
    config = hf.NystromformerConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=96, num_landmarks=8, segment_means_seq_len=96, conv_kernel_size=5,
    )  # fmt: skip
    hf.NystromformerForMaskedLM(config).save_pretrained(tmp_path / "model")
    pair_tokenizer(types=False, mask=True).save_pretrained(tmp_path / "model")
    with pytest.raises(
        UnsupportedArchitecture, match=r"itself does not take the short rows .*\(shape '\[.*' is invalid"
    ):
        run(tmp_path / "model", texts)


# -- tokens --------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_does_not_know_the_texts_is_refused(checkpoint, texts: Path) -> None:
    folder = checkpoint(hf.AutoModelForMaskedLM, "bert")
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": 4, "the": 5, "a": 6}
    hf.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    with pytest.raises(UsageError, match=r"^11 of 15 tokens \(73%\) are \[UNK\], which the tokenizer gives for what"):
        run(folder, texts, task="encode")


def test_a_tokenizer_that_makes_nothing_of_the_texts_is_refused(checkpoint, texts: Path) -> None:
    folder = checkpoint(hf.AutoModelForCausalLM, "gpt2")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z].*"), "")
    tokenizer.save_pretrained(folder)
    texts.write_text("line\nline\nA\n")
    with pytest.raises(
        UsageError, match=r"^The tokenizer makes no token of 2 of 3 texts\. Give a model whose tokenizer"
    ):
        run(folder, texts)


class _Listener:
    """Keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self.say = said.append

    def start(self, n_examples: int, n_tokens: int) -> None: ...

    def advance(self, n_examples: int, n_tokens: int) -> None: ...

    def written(self, n_bytes: int) -> None: ...

    def finish(self) -> None: ...
