"""What models make of their unembedding, against what their classes say in their own code."""

import pytest
import torch
from support.encoder_decoders import tiny_encoder_decoder
from support.encoders import tiny_masked_encoder
from support.models import tiny_decoder

from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.logit_map import LogitMap


@pytest.mark.parametrize(
    ("family", "options", "factor", "cap"),
    [
        ("llama", {}, 1.0, None),
        ("cohere", {"logit_scale": 0.25}, 0.25, None),
        ("granite", {"logits_scaling": 13.0}, 1 / 13, None),
        ("gemma2", {"final_logit_softcapping": 5.0}, 1.0, 5.0),
        ("gemma2", {"final_logit_softcapping": None}, 1.0, None),
    ],
)
def test_factor_and_cap_are_what_the_config_says(family: str, options: dict, factor: float, cap: float | None) -> None:
    found = find_structure(tiny_decoder(family, **options), 258).logits
    assert found is not None and found.shift is None
    assert (found.factor, found.cap) == (pytest.approx(factor, rel=1e-6), cap and pytest.approx(cap, rel=1e-6))


def test_a_factor_in_front_of_the_unembedding_counts() -> None:
    found = find_structure(tiny_encoder_decoder("t5"), 259, "seq2seq").logits
    assert found == LogitMap(32**-0.5)


def test_a_shift_and_tokens_that_are_ruled_out_are_kept() -> None:
    model = tiny_encoder_decoder("marian")
    bias = torch.linspace(-2, 2, 259)
    bias[[7, 9]] = torch.tensor([-torch.inf, torch.finfo(torch.float32).min])
    model.final_logits_bias = bias[None].clone()
    found = find_structure(model, 259, "seq2seq").logits
    assert found is not None and (found.factor, found.cap) == (1.0, None)
    assert torch.equal(found.shift, bias)
    ids = torch.tensor([[0, 7], [258, 9]])
    assert found.uncapped(torch.ones(2, 2), ids)[:, 0].tolist() == [-1.0, 3.0]
    assert found.uncapped(torch.ones(1, 259))[0, 7] == -torch.inf


@pytest.mark.parametrize("change", [torch.relu, lambda x: x.log_softmax(-1), lambda x: x.flip(1), lambda x: x[..., :9]])
def test_what_is_no_factor_cap_or_shift_is_not_taken_for_one(change) -> None:
    model = tiny_decoder("llama")
    own = model.forward
    model.forward = lambda *args, **kwargs: _changed(own(*args, **kwargs), change)
    assert find_structure(model, 258).logits is None


def _changed(output, change):
    output.logits = change(output.logits)
    return output


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_head_with_a_transform_is_none(family: str) -> None:
    assert find_structure(tiny_masked_encoder(family), 260, "masked").logits is None
