"""The certificate passes on honest captures and names what is wrong with dishonest ones."""

from dataclasses import replace

import pytest
import torch
from support.encoders import ENCODERS, pair_tokenizer, tiny_encoder
from support.models import FAMILIES, byte_tokenizer, tiny_decoder

from decision_traces.errors import CaptureError
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.tokens import Encoding, encode, encode_pairs
from decision_traces.tracing.recorder import Recorder
from decision_traces.tracing.self_check.certificate import certify, require

STAGES = ("embed", "post_attn", "post_mlp", "final", "q", "k", "v", "attn")
SITES = tuple(f"dec.{stage}" for stage in STAGES)
ENCODER_SITES = tuple(f"enc.{stage}" for stage in STAGES)
TEXTS = ["A first line.", "x", "", "The second line is longer than the first one.", "Third."]


def _loaded(family: str) -> LoadedModel:
    model = tiny_decoder(family, attn_implementation="eager")
    return LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager")


def _encodings() -> list[Encoding]:
    return encode(byte_tokenizer(), TEXTS, 40)


def _with(structure: ModuleStructure, **changes) -> ModuleStructure:
    return structure.with_stack(replace(structure.main, **changes))


def _failures(loaded: LoadedModel, structure) -> set[str]:
    return {c.name for c in certify(loaded, structure, SITES, _encodings(), 0).checks if not c.passed}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_on_ragged_rows(family: str) -> None:
    loaded = _loaded(family)
    certificate = certify(loaded, find_structure(loaded.model, 258), SITES, _encodings(), 0)
    require(certificate, family)
    assert certificate.rows == (4, 0, 3) and certificate.tokens == 6 + 13 + 32
    assert next(c for c in certificate.checks if "equal logits without" in c.name).worst == 0.0


def test_swapped_layers_are_caught() -> None:
    loaded = _loaded("llama")
    structure = find_structure(loaded.model, 258)
    first, second, third = structure.layers
    swapped = _with(
        structure,
        layers=(replace(first, post_mlp=second.post_mlp), replace(second, post_mlp=first.post_mlp), third),
    )
    assert "layer inputs are those transformers reports" in _failures(loaded, swapped)


def test_a_hook_that_changes_the_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("llama")
    put = Recorder._put
    monkeypatch.setattr(Recorder, "_put", lambda self, site, layer, t: (put(self, site, layer, t), t.mul_(1.001))[0])
    assert "logits with capture equal logits without" in _failures(loaded, find_structure(loaded.model, 258))


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_a_missing_norm_is_caught(family: str) -> None:
    loaded = _loaded(family)
    structure = find_structure(loaded.model, 258)
    unnormed = _with(structure, final=structure.layers[-1].post_mlp)
    assert "hidden[L] is the base model's last hidden state" in _failures(loaded, unnormed)


STREAM = [f for f in FAMILIES if f not in {"gpt_neox", "phi", "cohere", "gptj", "falcon", "opt_post_norm"}]


@pytest.mark.parametrize("family", STREAM)
def test_post_attn_taken_before_attention_is_caught(family: str) -> None:
    loaded = _loaded(family)
    structure = find_structure(loaded.model, 258)
    early = _with(structure, layers=tuple(replace(p, post_attn=p.pre_attn) for p in structure.layers))
    assert "post_attn: attention adds something to pre_attn" in _failures(loaded, early)


@pytest.mark.parametrize("family", STREAM)
def test_post_attn_taken_after_the_mlp_or_from_another_layer_is_caught(family: str) -> None:
    loaded = _loaded(family)
    structure = find_structure(loaded.model, 258)
    late = _with(structure, layers=tuple(replace(p, post_attn=p.post_mlp) for p in structure.layers))
    hook_points = [p.post_attn for p in structure.layers][::-1]
    other = _with(
        structure, layers=tuple(replace(p, post_attn=t) for p, t in zip(structure.layers, hook_points, strict=True))
    )
    for wrong in (late, other):
        assert "post_attn: without attention, only a constant is added to pre_attn" in _failures(loaded, wrong)


def test_values_of_another_layer_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("llama")
    put = Recorder._put
    monkeypatch.setattr(
        Recorder, "_put", lambda self, site, layer, t: put(self, site, 2 - layer if site == "dec.v" else layer, t)
    )
    assert "attention: probabilities times v give the output" in _failures(loaded, find_structure(loaded.model, 258))


def test_probabilities_that_do_not_explain_the_output_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("llama")
    put = Recorder._put
    monkeypatch.setattr(
        Recorder, "_put", lambda self, site, layer, t: put(self, site, layer, t / 2 if site == "dec.attn" else t)
    )
    failed = {
        c.name
        for c in certify(loaded, find_structure(loaded.model, 258), ("dec.attn",), _encodings(), 0).checks
        if not c.passed
    }
    assert failed == {
        "attention: the probabilities are those transformers reports",
        "attention: probabilities times v give the output",
    }


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((f, torch.bfloat16) for f in FAMILIES), *((f, torch.float16) for f in ("gpt2", "llama", "gemma2", "phi"))],
)  # the narrower type everywhere; the other takes the same way
def test_models_in_half_precision_pass(family: str, dtype: torch.dtype) -> None:
    loaded = _loaded(family)
    loaded.model.to(dtype)
    require(certify(loaded, find_structure(loaded.model, 258), SITES, _encodings(), 0), family)


def test_a_failed_certificate_stops_and_names_the_check() -> None:
    loaded = _loaded("llama")
    structure = find_structure(loaded.model, 258)
    certificate = certify(loaded, _with(structure, final=structure.layers[-1].post_mlp), SITES, _encodings(), 0)
    with pytest.raises(CaptureError, match=r"Llama failed its certificate: hidden\[L\] is the base model.*worst"):
        require(certificate, "Llama")


@pytest.mark.parametrize(("family", "direct"), [("llama", True), ("gpt2", True), ("gemma2", False), ("cohere", False)])
def test_logits_that_are_changed_after_the_unembedding_are_known(family: str, direct: bool) -> None:
    overrides = {"logit_scale": 0.5} if family == "cohere" else {}
    assert find_structure(tiny_decoder(family, **overrides), 258).logits_are_unembedded is direct


def test_a_model_that_sees_later_tokens_is_caught() -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=258
    )
    model = BertLMHeadModel(config).eval()  # is_decoder is off: attention in both directions
    model.set_attn_implementation("eager")
    loaded = LoadedModel(model, byte_tokenizer(), config, torch.device("cpu"), None, "eager")
    structure = find_structure(model, 258)
    assert "attention: no probability on later tokens" in _failures(loaded, structure)
    # and without attention captured as well
    failed = {c.name for c in certify(loaded, structure, ("dec.final",), _encodings(), 0).checks if not c.passed}
    assert failed == {"causal: no position depends on later tokens"}


def test_nothing_stays_on_the_model_after_a_capture_that_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("gpt2")
    structure = find_structure(loaded.model, 258)

    def fail(*_args) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Recorder, "_put", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        certify(loaded, structure, SITES, _encodings(), 0)
    for module in loaded.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_single_tokens_are_checked_too_and_nothing_is_no_pass() -> None:
    loaded = _loaded("gpt2")
    structure = find_structure(loaded.model, 258)
    single = certify(loaded, structure, SITES, encode(byte_tokenizer(), ["", "x", "y"], 9), 0)
    assert (single.rows, single.tokens, single.passed) == ((1, 2), 2, True)
    nothing = certify(loaded, structure, SITES, encode(byte_tokenizer(), [""], 9), 0)
    assert (nothing.checks, nothing.passed) == ((), None)


POST_NORM = ("bert", "distilbert", "albert", "deberta_v3", "mpnet")


def _encoder(family: str) -> tuple[LoadedModel, ModuleStructure, list[Encoding]]:
    model = tiny_encoder(family, attn_implementation="eager")
    tokenizer = pair_tokenizer()
    loaded = LoadedModel(model, tokenizer, model.config, torch.device("cpu"), None, "eager", "multiple_choice")
    encodings = encode_pairs(tokenizer, ["A first line.", "x", "Where?"], ["a long answer to it", "no", "there"], 40)
    return loaded, find_structure(model, 259, "multiple_choice"), encodings


@pytest.mark.parametrize("family", ENCODERS)
def test_every_encoder_passes(family: str) -> None:
    loaded, structure, encodings = _encoder(family)
    certificate = certify(loaded, structure, ENCODER_SITES, encodings, 0)
    assert certificate.passed
    names = {check.name for check in certificate.checks}
    assert not any("later tokens" in name for name in names), "encoders look both ways"
    assert ("post_attn: the norm of pre_attn + what attention writes" in names) == (family != "modernbert")


@pytest.mark.parametrize("family", POST_NORM)
@pytest.mark.parametrize("wrong", ["pre_attn", "post_mlp", "another layer"])
def test_a_wrong_post_attn_behind_a_norm_is_caught(family: str, wrong: str) -> None:
    loaded, structure, encodings = _encoder(family)
    hook_points = [p.post_attn for p in structure.layers][::-1]
    instead = hook_points if wrong == "another layer" else [getattr(p, wrong) for p in structure.layers]
    layers = tuple(replace(p, post_attn=t) for p, t in zip(structure.layers, instead, strict=True))
    failed = {
        c.name
        for c in certify(loaded, _with(structure, layers=layers), ENCODER_SITES, encodings, 0).checks
        if not c.passed
    }
    assert "post_attn: the norm of pre_attn + what attention writes" in failed


def test_a_write_that_is_not_attentions_is_caught() -> None:
    """The MLP's output in place of attention's: its sum with the stream is not what post_attn is the norm of."""
    loaded, structure, encodings = _encoder("bert")
    layers = tuple(
        replace(p, attn_out=replace(p.attn_out, module=f"bert.encoder.layer.{i}.output.dense"))
        for i, p in enumerate(structure.layers)
    )
    failed = {
        c.name
        for c in certify(loaded, _with(structure, layers=layers), ENCODER_SITES, encodings, 0).checks
        if not c.passed
    }
    assert "post_attn: without attention, only a constant is added to pre_attn" in failed


def test_rows_of_different_lengths_are_tried() -> None:
    """Choices of one question are alike; the sample takes the shortest, one between and the longest."""
    loaded = _loaded("llama")
    texts = ["ten chars.", "ten chars!", "ten chars?", "a much longer line of text", "ab", "x"]
    certificate = certify(loaded, find_structure(loaded.model, 258), SITES, encode(byte_tokenizer(), texts, 40), 0)
    assert (certificate.rows, certificate.tokens) == ((4, 1, 3), 2 + 10 + 26)
