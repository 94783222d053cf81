"""Trained weights of five architectures, in float32 and bfloat16: every stage, bit for bit, against plain transformers.

The expectation is the model's own output flags, and hooks on modules that are named here literally. No text: ids alone
(one of the models comes without a tokenizer).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.models import byte_tokenizer

from decision_traces.demo import MODEL_DIR
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.load import LoadedModel
from decision_traces.tokens import Encoding, make_batch, random_encodings
from decision_traces.tracing.recorder import sites_of_stack
from decision_traces.tracing.self_check.certificate import certify, check_structure
from decision_traces.tracing.self_check.evidence import record

pytestmark = pytest.mark.real

STAGES = (
    "embed",
    "post_attn",
    "post_mlp",
    "final",
    "q",
    "k",
    "v",
    "attn",
    "head_out",
    "attn_out",
    "mlp_out",
    "mlp_act",
)


@dataclass(frozen=True)
class Named:
    """Where things are in one architecture, by the names in its source."""

    auto: Any
    task: str
    side: str
    layers: str
    attention_out: str  # its output is what attention adds
    projection: str  # its input is the heads side by side
    mlp_out: str
    down: str
    shared: bool = False  # one module called once a layer


LLAMA = Named(
    hf.AutoModelForCausalLM, "causal", "dec", "model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"
)
GPT2 = Named(hf.AutoModelForCausalLM, "causal", "dec", "transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj")
BERT = Named(
    hf.AutoModel,
    "encode",
    "enc",
    "encoder.layer",
    "attention.output.dense",
    "attention.output.dense",
    "output.dense",
    "output.dense",
)
ALBERT = Named(
    hf.AutoModelForMaskedLM,
    "masked",
    "enc",
    "albert.encoder.albert_layer_groups.0.albert_layers",
    "attention.dense",
    "attention.dense",
    "ffn_output",
    "ffn_output",
    shared=True,
)


def _folder(name: str, request: pytest.FixtureRequest) -> tuple[Path, Named]:
    if name == "demo":
        return MODEL_DIR, GPT2
    if name == "smollm2":
        return request.getfixturevalue("smollm2"), LLAMA
    if name == "minilm":
        return request.getfixturevalue("minilm_base"), BERT
    folder = request.getfixturevalue("shared_models")
    known = {"stories260k": ("stories260k-llama", LLAMA), "rxnmapper": ("rxnmapper-albert", ALBERT)}
    return folder / known[name][0], known[name][1]


def _load(folder: Path, named: Named, dtype: torch.dtype) -> LoadedModel:
    model = named.auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    return LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager", named.task)


def _rows(vocab: int) -> list[Encoding]:
    random = np.random.default_rng(11)
    lengths = (17, 5, 40)
    return [
        Encoding(random.integers(5, vocab, n, dtype=np.int32), np.zeros((n, 2), np.int32), truncated=False)
        for n in lengths
    ]


def _plain(model: Any, named: Named, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run one row and keep what the named modules saw: (layers, 1, position, ...)."""
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, what: Callable[[Any, Any], torch.Tensor]) -> Callable[..., None]:
        return lambda _m, args, out: seen.setdefault(name, []).append(what(args, out).detach().clone())

    def first(value: Any) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value

    layers = list(model.get_submodule(named.layers))
    with ExitStack() as stack, torch.inference_mode():
        for layer in layers:
            for name, module, what in (
                ("attn_out", named.attention_out, lambda _a, o: first(o)),
                ("head_out", named.projection, lambda a, _o: a[0]),
                ("mlp_out", named.mlp_out, lambda _a, o: first(o)),
                ("mlp_act", named.down, lambda a, _o: a[0]),
            ):
                stack.callback(layer.get_submodule(module).register_forward_hook(keep(name, what)).remove)
            stack.callback(layer.register_forward_hook(keep("post_mlp", lambda _a, o: first(o))).remove)
        out = model(input_ids=ids, output_hidden_states=True, output_attentions=True)
    states = out.hidden_states
    expected = {name: torch.stack(values) for name, values in seen.items()}
    expected["embed"], expected["final"] = states[0][None], states[-1][None]
    expected["attn"] = torch.stack(out.attentions)
    heads = out.attentions[0].shape[1]
    head_out = expected["head_out"]
    expected["head_out"] = head_out.reshape(*head_out.shape[:3], heads, -1).transpose(2, 3)
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["smollm2", "stories260k", "demo", "minilm", "rxnmapper"])
def test_every_stage_equals_plain_transformers(name: str, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    folder, named = _folder(name, request)
    loaded = _load(folder, named, dtype)
    structure = find_structure(loaded.model, loaded.vocab_size, loaded.task)
    (stack,) = structure.stacks.values()
    assert stack.side == named.side and not stack.missing
    places = sites_of_stack(stack.side, stack, STAGES)
    for row in _rows(loaded.vocab_size):
        with torch.inference_mode():
            taken = record(loaded, structure, places, make_batch([0], [row], 0))
        expected = _plain(loaded.model, named, torch.from_numpy(row.ids.astype(np.int64))[None])
        for stage, right in expected.items():
            assert torch.equal(taken.sites[f"{stack.side}.{stage}"], right.float()), stage
        _attention_follows_from_q_and_k(taken.sites, stack, dtype)
        _stream_adds_up(taken.sites, stack, expected)


def _attention_follows_from_q_and_k(sites: dict[str, torch.Tensor], stack: Any, dtype: torch.dtype) -> None:
    """softmax(scale * q·k) in float64 gives the probabilities, as far as the model's own type carries."""
    q, k, attn = (sites[f"{stack.side}.{stage}"].double() for stage in ("q", "k", "attn"))
    for layer, plan in enumerate(stack.attention(cross=False)):
        keys = k[layer].repeat_interleave(plan.n_heads // plan.n_kv_heads, 1)
        scores = plan.scale * q[layer] @ keys.transpose(-1, -2)
        if stack.side == "dec":
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        worst = (scores.softmax(-1) - attn[layer]).abs().max()
        assert worst < (1e-5 if dtype == torch.float32 else 5e-2), (layer, float(worst))


def _stream_adds_up(sites: dict[str, torch.Tensor], stack: Any, expected: dict[str, torch.Tensor]) -> None:
    """Where no norm stands between, what was written added to the stream is the next state, in the model's type."""
    if stack.post_attn_kind != "stream":
        return
    before = torch.cat([expected["embed"], expected["post_mlp"][:-1]])
    assert torch.equal(sites[f"{stack.side}.post_attn"], (before + expected["attn_out"]).float())
    assert torch.equal(expected["post_mlp"], (before + expected["attn_out"]) + expected["mlp_out"])


@pytest.mark.parametrize(
    ("attention", "dtype"), [("eager", torch.float32), ("sdpa", torch.bfloat16), ("sdpa", torch.float16)]
)
@pytest.mark.parametrize("name", ["smollm2", "stories260k", "demo", "minilm", "rxnmapper"])
def test_all_is_proved_and_nothing_is_missing(
    name: str, attention: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    folder, named = _folder(name, request)
    model = named.auto.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    loaded = LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, attention, named.task)
    found = find_structure(model, loaded.vocab_size, loaded.task)
    structure, certificate = check_structure(loaded, found, random_encodings(loaded.vocab_size, loaded.task), 0)
    assert certificate.failed == () and not list(structure.missing())
    sites = [f"{named.side}.{stage}" for stage in STAGES if attention == "eager" or stage != "attn"]
    assert certify(loaded, structure, sites, _rows(loaded.vocab_size), 0).passed
    assert model.config._attn_implementation == attention, "left as it was"
