"""The certificate passes on honest captures and names what is wrong with dishonest ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from decision_traces.capture.certificate import certify, require
from decision_traces.capture.recorder import Recorder
from decision_traces.errors import CaptureError
from decision_traces.models.anatomy import find_anatomy
from decision_traces.models.load import LoadedModel
from decision_traces.schema import ATTN, EMBED, FINAL, POST_ATTN, POST_MLP, K, Q, V
from decision_traces.testing.models import FAMILIES, byte_tokenizer, tiny_decoder
from decision_traces.tokens import Encoding, encode

SITES = (EMBED, POST_ATTN, POST_MLP, FINAL, Q, K, V, ATTN)
TEXTS = ["A first line.", "x", "", "The second line is longer than the first one.", "Third."]


def _loaded(family: str) -> LoadedModel:
    model = tiny_decoder(family)
    model.set_attn_implementation("eager")
    return LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager")


def _encodings() -> list[Encoding]:
    return encode(byte_tokenizer(), TEXTS, 40)


def _failures(loaded: LoadedModel, anatomy) -> set[str]:
    return {c.name for c in certify(loaded, anatomy, SITES, _encodings(), 0).checks if not c.passed}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_on_ragged_rows(family: str) -> None:
    loaded = _loaded(family)
    certificate = certify(loaded, find_anatomy(loaded.model, 258), SITES, _encodings(), 0)
    require(certificate, family)
    assert certificate.rows == 3 and certificate.tokens == 13 + 40 + 6
    assert next(c for c in certificate.checks if "equal logits without" in c.name).worst == 0.0


def test_swapped_layers_are_caught() -> None:
    loaded = _loaded("llama")
    anatomy = find_anatomy(loaded.model, 258)
    first, second, third = anatomy.layers
    swapped = replace(
        anatomy,
        layers=(replace(first, post_mlp=second.post_mlp), replace(second, post_mlp=first.post_mlp), third),
    )
    assert "residual stream: a layer's input is the output of the one before" in _failures(loaded, swapped)


def test_a_hook_that_changes_the_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("llama")
    put = Recorder._put
    monkeypatch.setattr(Recorder, "_put", lambda self, site, layer, t: (put(self, site, layer, t), t.mul_(1.001))[0])
    assert "logits with capture equal logits without" in _failures(loaded, find_anatomy(loaded.model, 258))


def test_a_missing_norm_is_caught() -> None:
    loaded = _loaded("llama")
    anatomy = find_anatomy(loaded.model, 258)
    unnormed = replace(anatomy, final=anatomy.layers[-1].post_mlp)
    assert "the unembedding of hidden[L] gives the logits" in _failures(loaded, unnormed)


def test_a_failed_certificate_stops_and_names_the_check() -> None:
    loaded = _loaded("llama")
    anatomy = find_anatomy(loaded.model, 258)
    certificate = certify(loaded, replace(anatomy, final=anatomy.layers[-1].post_mlp), SITES, _encodings(), 0)
    with pytest.raises(CaptureError, match=r"Llama failed its certificate: the unembedding of hidden\[L\].*worst"):
        require(certificate, "Llama")


@pytest.mark.parametrize(("family", "direct"), [("llama", True), ("gpt2", True), ("gemma2", False), ("cohere", False)])
def test_logits_that_are_changed_after_the_unembedding_are_known(family: str, direct: bool) -> None:
    overrides = {"logit_scale": 0.5} if family == "cohere" else {}
    assert find_anatomy(tiny_decoder(family, **overrides), 258).logits_are_unembedded is direct


def test_a_model_that_sees_later_tokens_is_caught() -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=258
    )
    model = BertLMHeadModel(config).eval()  # is_decoder is off: attention in both directions
    model.set_attn_implementation("eager")
    loaded = LoadedModel(model, byte_tokenizer(), config, torch.device("cpu"), None, "eager")
    anatomy = find_anatomy(model, 258)
    assert "attention: no probability on later tokens" in _failures(loaded, anatomy)
    # and without attention captured as well
    failed = {c.name for c in certify(loaded, anatomy, (FINAL,), _encodings(), 0).checks if not c.passed}
    assert failed == {"causal: no position depends on later tokens"}


def test_nothing_stays_on_the_model_after_a_capture_that_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("gpt2")
    anatomy = find_anatomy(loaded.model, 258)

    def fail(*_args) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Recorder, "_put", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        certify(loaded, anatomy, SITES, _encodings(), 0)
    for module in loaded.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_without_a_prediction_to_check_there_is_nothing_to_certify() -> None:
    loaded = _loaded("gpt2")
    certificate = certify(loaded, find_anatomy(loaded.model, 258), SITES, encode(byte_tokenizer(), ["", "x"], 9), 0)
    assert (certificate.checks, certificate.rows) == ((), 0)
    assert certificate.to_meta()["passed"] is True
    np.testing.assert_equal(certificate.tokens, 0)
