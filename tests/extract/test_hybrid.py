"""A hybrid decoder end to end: arrays of attention have only the layers with attention, by the model's own numbers."""

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

LINES = ["The cat sat on the mat.", "ab", "One more line of plain text.", "abc"]
WITH_ATTENTION = (1, 3)


@pytest.fixture(scope="module")
def jamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, attention in the second and the last, state space in the others, an MLP in all."""
    torch.manual_seed(7)
    config = hf.JambaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        max_position_embeddings=96,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("jamba") / "jamba"
    checked_and_enlarged(hf.AutoModelForCausalLM.from_config(config).eval(), "jamba").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(folder: Path, out: Path, **options) -> TraceStore:
    texts = out.parent / "lines.txt"
    texts.write_text("\n".join(LINES) + "\n")
    settings = {"capture": ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out"), "dtype": "float32", **options}
    config = NextTokenConfig(model="tiny", model_path=folder, text_file=texts, out_dir=out, **settings)
    return TraceStore(extract_next_token(config))


@pytest.fixture(scope="module")
def whole(jamba: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return run(jamba, tmp_path_factory.mktemp("whole") / "run")


def alone(folder: Path, text: str) -> dict[str, np.ndarray]:
    """Attention, hidden states, and what the layers with attention read and write, of one text by itself."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    seen: dict[str, list[np.ndarray]] = {"attn_out": [], "mlp_out": [], "post_attn": []}

    def keep(name: str, value) -> None:
        value = value[0] if isinstance(value, tuple) else value
        seen[name].append(value.reshape(-1, value.shape[-1]).numpy().copy())

    for number, layer in enumerate(model.model.layers):
        if number in WITH_ATTENTION:
            layer.feed_forward.register_forward_hook(lambda _m, _a, out: keep("mlp_out", out))
            layer.self_attn.register_forward_hook(lambda _m, _a, out: keep("attn_out", out))
            layer.pre_ff_layernorm.register_forward_pre_hook(lambda _m, a: keep("post_attn", a[0]))
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        out = model(ids, output_attentions=True, output_hidden_states=True, use_cache=False)
    found = {name: np.stack(values) for name, values in seen.items()}
    found["attn"] = torch.stack([a[0] for a in out.attentions if a is not None]).numpy()
    found["hidden"] = torch.stack([h[0] for h in out.hidden_states]).numpy()
    return found


def test_arrays_have_the_layers_that_have_them(whole: TraceStore) -> None:
    shapes = {name: shape[1] for name, shape in whole.arrays().items() if name != "dec_res_embed"}
    assert shapes == {
        **dict.fromkeys(("dec_self_attn", "dec_self_q", "dec_self_k", "dec_self_v"), 2),
        # Of a layer without attention, nothing tells its mixer from its MLP.
        **dict.fromkeys(("dec_res_post_attn", "dec_attn_out", "dec_mlp_out"), 2),
        **dict.fromkeys(("dec_res_pre_attn", "dec_res_post_mlp"), 4),
        "dec_hidden": 5,
    }
    assert not failures(validate_run(whole.run_dir))


@pytest.mark.parametrize("row", range(len(LINES)))
def test_a_hybrid_gives_each_text_as_alone(row: int, whole: TraceStore, jamba: Path) -> None:
    expected = alone(jamba, LINES[row])
    found = {
        "attn": whole.attn(row, trim=True),
        "attn_out": whole.attn_out(row, trim=True),
        "mlp_out": whole.mlp_out(row, trim=True),
        "post_attn": whole.resid(row, stage="post_attn", trim=True),
        "hidden": whole.hidden(row, trim=True),
    }
    for name, values in expected.items():
        assert plain.worst_difference(found[name], values) < 2e-5, name
    pre = whole.resid(row, stage="pre_attn", trim=True)
    assert plain.worst_difference(pre, expected["hidden"][:4]) < 2e-5
    for slot, layer in enumerate(WITH_ATTENTION):
        np.testing.assert_array_equal(whole.attn(row, layer=layer, trim=True), found["attn"][slot])


def test_a_layer_without_attention_says_which_have_it(whole: TraceStore) -> None:
    with pytest.raises(SelectionError, match="No layer 2 here: only layers 1 and 3 of this model have self-attention"):
        whole.attn(0, layer=2)


def test_a_selected_hybrid_run_is_the_slice(whole: TraceStore, jamba: Path, tmp_path: Path) -> None:
    some = run(jamba, tmp_path / "run", layers="2-3", heads="1", positions="last")
    assert not failures(validate_run(some.run_dir))
    for row, line in enumerate(LINES):
        at = len(line) - 1
        np.testing.assert_array_equal(some.attn(row), whole.attn(row)[1:, 1:2, at : at + 1])
        np.testing.assert_array_equal(some.qkv(row, which="v"), whole.qkv(row, which="v")[1:, :1, at : at + 1])
        np.testing.assert_array_equal(some.resid(row), whole.resid(row)[2:, at : at + 1])
        np.testing.assert_array_equal(some.hidden(row), whole.hidden(row)[2:, at : at + 1])


def test_attention_of_layers_without_any_is_refused(jamba: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--capture attn: .*none of the layers kept \(--layers\) has attn"):
        run(jamba, tmp_path / "run", layers="0,2", capture=("attn", "hidden"))
    assert not (tmp_path / "run").exists()
