"""Token types of single texts: the model is told what its tokenizer says, and the run keeps it."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from support.encoders import pair_tokenizer
from tokenizers import processors

from decision_traces import TraceStore
from decision_traces.analysis.replay import replay_rows
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures, validate_run

TEXTS = ("one text", "another, longer text")


@pytest.fixture(params=["bert", "xlnet"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model whose tokenizer gives the last token of every text the type 2, as XLNet's does."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 260, "num_attention_heads": 2}
    if request.param == "bert":
        config = hf.BertConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=24, type_vocab_size=3, **sizes)
        model = hf.BertForMaskedLM(config)
    else:
        model = hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=260, d_model=16, n_layer=2, n_head=2, d_inner=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.8)
    model.save_pretrained(tmp_path / "model")
    tokenizer = pair_tokenizer(types=True, mask=True)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <e>:2", pair="<s> $A <e> $B:1 <e>:1", special_tokens=[("<s>", 1), ("<e>", 2)]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_run_reproduces_plain_transformers_from_its_own_columns(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    config = TextConfig(
        model_path=folder,
        text_file=tmp_path / "texts.txt",
        task="encode",
        capture=("hidden",),
        dtype="float32",
        out_dir=tmp_path / "run",
    )
    store = TraceStore(extract_texts(config))
    assert not failures(validate_run(store.run_dir))
    model = hf.AutoModel.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    for row, text in enumerate(TEXTS):
        inputs = tokenizer(text, return_tensors="pt")
        assert inputs["token_type_ids"][0, -1] == 2
        kept = store.encodings(row, side="enc", trim=True)
        assert kept["token_type_ids"].tolist() == inputs["token_type_ids"][0].tolist()
        with torch.no_grad():
            plain = model(**inputs, output_hidden_states=True).hidden_states
            wrong = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        np.testing.assert_allclose(store.hidden(row, side="enc", trim=True)[-1], plain[-1][0], rtol=1e-4, atol=1e-5)
        assert (plain[-1] - wrong).abs().max() > 1e-2  # what was stored when the types were lost
    assert all(check.ok for check in replay_rows(store, 2, model_path=folder))


def test_a_model_that_does_not_ask_has_no_such_column(tiny_folder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    config = TextConfig(
        model_path=tiny_folder("gpt2"), text_file=tmp_path / "texts.txt", capture=("hidden",), out_dir=tmp_path / "run"
    )
    assert "token_type_ids" not in pq.read_schema(extract_texts(config) / "tokens.parquet").names
