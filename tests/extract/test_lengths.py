"""Models that compute texts of different lengths in different ways: each row as plain transformers runs it alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.encoders import pair_tokenizer
from support.models import byte_tokenizer, checked_and_enlarged

from decision_traces import TraceStore
from decision_traces.errors import UnsupportedArchitecture
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.model import load

SWITCH, FULL = 16, 28  # LongRoPE's; BigBird's (5 + 2 * random blocks) * block size
LENGTHS = (5, 12, 16, 17, 21, 40)
TEXTS = ["abcdefgh"[:n] if n < 9 else ("abcdefgh" * 5)[:n] for n in LENGTHS]


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = hf.Phi3Config(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, original_max_position_embeddings=SWITCH, rope_parameters=rope,
        bos_token_id=1, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return _saved(hf.Phi3ForCausalLM, config, byte_tokenizer(), tmp_path_factory.mktemp("longrope") / "model")


@pytest.fixture(scope="module")
def bigbird(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = hf.BigBirdConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=96, block_size=4, num_random_blocks=1,
    )  # fmt: skip
    tokenizer = pair_tokenizer(types=False, mask=True)
    return _saved(hf.BigBirdForMaskedLM, config, tokenizer, tmp_path_factory.mktemp("bigbird") / "model")


def _saved(kind: Any, config: Any, tokenizer: Any, folder: Path) -> Path:
    torch.manual_seed(7)
    checked_and_enlarged(kind(config).eval(), config.model_type).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(folder: Path, tmp_path: Path, texts: list[str], **options: Any) -> TraceStore:
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    config = TextConfig(
        model_path=folder, text_file=tmp_path / "lines.txt", out_dir=tmp_path / "run", capture=("hidden",),
        dtype="float32", **options,
    )  # fmt: skip
    return TraceStore(extract_texts(config))


def alone(kind: Any, folder: Path, text: str) -> np.ndarray:
    """The hidden states of a text that a model reads first of all."""
    model, tokenizer = kind.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return torch.stack([state[0] for state in out.hidden_states]).numpy()


def test_texts_on_two_sides_of_a_switch_never_share_a_batch(longrope: Path, tmp_path: Path) -> None:
    store = run(longrope, tmp_path, TEXTS)
    assert store.meta["rows_padded"] is True
    for row, text in enumerate(TEXTS):
        expected = alone(hf.Phi3ForCausalLM, longrope, text)
        np.testing.assert_allclose(store.hidden(row, trim=True), expected, atol=5e-6, rtol=0)


def test_the_certificate_finds_a_switch_that_no_config_tells(
    longrope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of their whole length differ in a batch: from then on none is padded."""
    monkeypatch.setattr(load, "switch_of", lambda config: None)
    long = ["abcdefgh" * 5, "abc", "abcd"]
    monkeypatch.setattr("decision_traces.tracing.self_check.certificate.TOKENS", 8)  # what the other checks look at
    store = run(longrope, tmp_path, long)
    assert store.meta["rows_padded"] is False
    for row, text in enumerate(long):
        expected = alone(hf.Phi3ForCausalLM, longrope, text)
        np.testing.assert_allclose(store.hidden(row, trim=True), expected, atol=5e-6, rtol=0)


def test_bigbird_reads_short_texts_as_plain_transformers_does(bigbird: Path, tmp_path: Path) -> None:
    texts = ["abc", "abcdefgh", "abcdefgh" * 3]  # two special tokens each: 26 at most
    store = run(bigbird, tmp_path, texts, mask_prob=0.0)
    for row, text in enumerate(texts):
        expected = alone(hf.BigBirdForMaskedLM, bigbird, text)
        np.testing.assert_allclose(store.hidden(row, side="enc", trim=True), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("texts", [["abc", "abcdefgh" * 5], ["abcdefgh" * 5]], ids=["mixed", "long"])
def test_bigbird_is_not_turned_to_full_attention_by_its_probe(texts: list[str], bigbird: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=rf"up to {FULL} tokens in another way.*--max_seq_len {FULL} or"):
        run(bigbird, tmp_path, texts, mask_prob=0.0)
    assert run(bigbird, tmp_path, texts, mask_prob=0.0, max_seq_len=FULL).T == FULL


def test_a_model_that_changes_itself_with_a_long_row_is_refused(
    longrope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = hf.Phi3Model.forward

    def changing(self: Any, input_ids: Any = None, **inputs: Any) -> Any:
        if input_ids.shape[1] > 20:
            self.gradient_checkpointing = True
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(hf.Phi3Model, "forward", changing)
    with pytest.raises(
        UnsupportedArchitecture,
        match=r"changes itself as it runs \(model.gradient_checkpointing\): what it computes depends",
    ):
        run(longrope, tmp_path, TEXTS)
