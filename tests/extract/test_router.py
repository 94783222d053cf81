"""Router probabilities of mixtures of experts: what plain transformers gives, layer by layer, and nothing elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import transformers as hf
from support.models import byte_tokenizer, checked_and_enlarged

from decision_traces import TraceStore
from decision_traces.errors import ModelError, SelectionError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

LINES = ["The cat sat on the mat.", "ab", "One more line of plain text."]
N_EXPERTS = 5
SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 96, "pad_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=N_EXPERTS),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=N_EXPERTS, moe_intermediate_size=16),
    "gpt_oss": lambda: hf.GptOssConfig(**SIZES, head_dim=8, num_local_experts=N_EXPERTS, sliding_window=16),
    "granitemoe": lambda: hf.GraniteMoeConfig(**SIZES, num_local_experts=N_EXPERTS),
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, n_routed_experts=6, n_group=2, topk_group=1, first_k_dense_replace=1,
        moe_intermediate_size=16, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    ),
    "jamba": lambda: hf.JambaConfig(
        **{**SIZES, "num_hidden_layers": 4}, attn_layer_period=2, attn_layer_offset=1, num_experts=N_EXPERTS,
        expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, bos_token_id=1,
    ),
}  # fmt: skip
# Module of each router, by the family's own name; layers that have one.
ROUTERS = {
    "mixtral": ("mlp.gate", (0, 1, 2)),
    "qwen3_moe": ("mlp.gate", (0, 1, 2)),
    "gpt_oss": ("mlp.router", (0, 1, 2)),
    "granitemoe": ("block_sparse_moe.router", (0, 1, 2)),
    "deepseek_v3": ("mlp.gate", (1, 2)),
    "jamba": ("feed_forward.router", (1, 3)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in made:
            torch.manual_seed(7)
            made[family] = tmp_path_factory.mktemp(family) / family
            model = hf.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
            for name, parameter in model.named_parameters():
                if "experts" in name or name.endswith("weight"):
                    torch.nn.init.normal_(parameter, std=0.3)
            checked_and_enlarged(model, family).save_pretrained(made[family])
            byte_tokenizer().save_pretrained(made[family])
        return made[family]

    return build


def run(model: Path, out: Path, **options) -> TraceStore:
    texts = out.parent / "lines.txt"
    texts.write_text("\n".join(LINES) + "\n")
    settings = {"capture": ("router",), "dtype": "float32", **options}
    return TraceStore(
        extract_next_token(NextTokenConfig(model="tiny", model_path=model, text_file=texts, out_dir=out, **settings))
    )


def by_hook(model: torch.nn.Module, family: str, ids: torch.Tensor) -> np.ndarray:
    """The router's matrix times the state that each router's module is called with: (layers, tokens, experts)."""
    name, layers = ROUTERS[family]
    logits = []

    def multiply(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        state = args[0].reshape(-1, 32).double()
        bias = getattr(module, "bias", None)
        logits.append(state @ module.weight.double().T + (0.0 if bias is None else bias.double()))

    hooks = [model.get_submodule(f"model.layers.{i}.{name}").register_forward_pre_hook(multiply) for i in layers]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(logits).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", ROUTERS)
def test_router_probabilities_are_those_of_plain_transformers(family: str, folder, tmp_path: Path) -> None:
    store, model = run(folder(family), tmp_path / "run"), plain.load(folder(family))
    assert not failures(validate_run(store.run_dir))
    assert store.array("dec_router").numbers("layer") == ROUTERS[family][1]
    for row, line in enumerate(LINES):
        logits = by_hook(model, family, torch.tensor([byte_tokenizer()(line)["input_ids"]]))
        expected = 1 / (1 + np.exp(-logits)) if family == "deepseek_v3" else softmax(logits)
        np.testing.assert_allclose(store.router(row, trim=True), expected, rtol=2e-4, atol=1e-6)
        np.testing.assert_array_equal(store.router(row, layer=-1), store.router(row)[-1])
        if family != "deepseek_v3":
            np.testing.assert_allclose(store.router(row, trim=True).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_they_are_the_softmax_of_the_logits_that_transformers_reports(family: str, folder, tmp_path: Path) -> None:
    asked = {"capture": ("attn", "router"), "batch_size": 1}  # eager attention, as the plain model has
    store, model = run(folder(family), tmp_path / "run", **asked), plain.load(folder(family))
    for row, line in enumerate(LINES):
        ids = torch.tensor([byte_tokenizer()(line)["input_ids"]])
        with torch.no_grad():
            reported = model(ids, output_router_logits=True, use_cache=False).router_logits
        expected = torch.stack(list(reported)).float().softmax(-1)
        np.testing.assert_array_equal(store.router(row, trim=True), expected.numpy())


def test_a_run_says_what_it_holds_and_which_layers_have_it(folder, tmp_path: Path) -> None:
    store = run(folder("jamba"), tmp_path / "run", capture=("router", "hidden"), max_seq_len=40, dtype="float16")
    assert store.arrays() == {"dec_hidden": (3, 5, 40, 32), "dec_router": (3, 2, 40, N_EXPERTS)}
    assert store.meta["conventions"]["router"].startswith("router probabilities of all experts, before the choice")
    dims = store.meta["sides"]["dec"]
    assert dims["widths"] == {"expert": N_EXPERTS} and dims["parts"] == {"router": [1, 3]}
    assert store.to_xarray("dec_router").dims == ("example", "layer", "position", "expert")
    with pytest.raises(SelectionError, match="only layers 1 and 3 of this model have a router of experts"):
        store.router(0, layer=2)
    made = {check["name"] for check in store.meta["certificate"]["checks"]}
    assert made >= {
        "router: its matrix and the state it reads give the probabilities",
        "router: probabilities sum to 1",
    }


def test_a_run_without_it_says_nothing_of_it(folder, tmp_path: Path) -> None:
    meta = run(folder("jamba"), tmp_path / "run", capture=("hidden",)).meta
    assert "router" not in meta["conventions"] and not {"widths", "parts"} & meta["sides"]["dec"].keys()


def test_a_model_without_experts_refuses_it_by_name(tiny_folder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--capture router: .*none of its layers has a router of experts"):
        run(tiny_folder("llama"), tmp_path / "run")
