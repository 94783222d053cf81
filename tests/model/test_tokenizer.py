"""A tokenizer without a vocabulary is none; ByT5's slow one is read by a fast one with the same ids."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from decision_traces.errors import ModelError
from decision_traces.model import faults
from decision_traces.model.load import ModelSource, load_tokenizer
from decision_traces.model.tokenizer import fast_bytes

LM, MLM, SEQ2SEQ = hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM, hf.AutoModelForSeq2SeqLM


def tokenizer_of(folder: Path) -> Any:
    return load_tokenizer(ModelSource(model_path=folder))


@pytest.mark.parametrize(
    ("auto", "family"),
    [
        (LM, "gpt2"),
        (LM, "opt"),
        (LM, "gpt_neox"),
        (LM, "qwen2"),
        (LM, "gemma2"),
        (MLM, "bert"),
        (MLM, "roberta"),
        (SEQ2SEQ, "t5"),
    ],
)
def test_a_folder_without_tokenizer_files_is_refused(auto: Any, family: str, checkpoint) -> None:
    folder = checkpoint(auto, family)
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"has a tokenizer without a vocabulary.*Put the model's own tokenizer files"):
        tokenizer_of(folder)


def test_a_tokenizer_file_of_another_version_is_one_sentence(checkpoint) -> None:
    folder = checkpoint(LM, "gpt2")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "2.0"}))
    with pytest.raises(ModelError, match=r"has no tokenizer that can be loaded \(Unknown tokenizer version '2.0'"):
        tokenizer_of(folder)


def test_a_sentence_piece_file_names_the_packages_that_read_it(checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(LM, "llama")
    for path in folder.glob("token*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"a file of sentencepiece's")
    monkeypatch.setattr(faults, "_installed", lambda name: False)
    with pytest.raises(ModelError, match=r"as tokenizer.model alone.*: python -m pip install sentencepiece protobuf\."):
        tokenizer_of(folder)


@pytest.mark.parametrize(
    "text",
    [
        "aé</s><extra_id_0>b",
        "",
        "  x  \n\t y",
        "Ωμέγα 🙂 \x00\x7f",
        "<pad><unk>",
        "don't  stop",
        " </s> a",
        "<extra_id_124>",
    ],
)
def test_byt5_has_the_ids_of_its_slow_tokenizer(text: str) -> None:
    slow = hf.ByT5Tokenizer()
    fast = fast_bytes(slow)
    assert fast(text)["input_ids"] == slow(text)["input_ids"]
    assert fast.decode(fast(text)["input_ids"]) == slow.decode(slow(text)["input_ids"])


def test_a_byte_of_byt5_lies_where_its_character_does(tmp_path: Path) -> None:
    hf.ByT5Tokenizer().save_pretrained(tmp_path)
    hf.T5Config(tokenizer_class="ByT5Tokenizer").save_pretrained(tmp_path)
    tokenizer = tokenizer_of(tmp_path)
    told = tokenizer("aé🙂", return_offsets_mapping=True)
    assert told["input_ids"] == [97 + 3, 0xC3 + 3, 0xA9 + 3, 0xF0 + 3, 0x9F + 3, 0x99 + 3, 0x82 + 3, 1]
    assert told["offset_mapping"] == [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (0, 0)]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 384)


# -- folders that lead to the model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("models--x--y", "models--x--y/snapshots/0123"),
        (".", "models--x--y/snapshots/0123"),
        ("output", "output/checkpoint-500"),
    ],
)
def test_a_folder_around_a_model_leads_to_it(given: str, model: str, tmp_path: Path) -> None:
    hf.GPT2Config().save_pretrained(tmp_path / "models--x--y/snapshots/0123")
    hf.GPT2Config().save_pretrained(tmp_path / "output/checkpoint-500")
    folder = tmp_path / given
    error = faults.unloadable("", folder if given != "." else tmp_path, OSError("Unrecognized model"))
    told = str(error)
    assert told.startswith(f"--model_path {folder} holds no model itself, but a folder in it does: give --model_path")
    assert f"--model_path {tmp_path / model}" in told
