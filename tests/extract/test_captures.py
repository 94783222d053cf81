"""The captures besides the first four: what attention and MLP write, by head and by neuron, and the logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import plain_encoders
import pytest
import torch
from support.models import byte_tokenizer

from decision_traces import TraceStore
from decision_traces.errors import ModelError
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

CAPTURES = ("attn_out", "mlp_out", "head_out", "mlp_act", "logits")
LINES = ["The cat sat on the mat.", "a", "Ωμέγα 🙂", "One more line of plain text, longer."]
ROUNDING = 2e-5
# Layers; attention and MLP, whose outputs are what they write; the last matrix of each, whose input is what it reads.
DECODERS = {
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense", "mlp.dense_4h_to_h"),
}
BERT = ("bert.encoder.layer", "attention.output.dense", "output.dense", "attention.output.dense", "output.dense")


def hooked(model: Any, places: tuple[str, ...], call: Callable[[], Any]) -> tuple[dict[str, np.ndarray], Any]:
    """Call the model and return what the parts of every layer write and read, by capture, and its output."""
    path, attention, mlp, project, last = places
    seen: dict[str, list[np.ndarray]] = {"attn_out": [], "mlp_out": [], "head_out": [], "mlp_act": []}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        array = value.reshape(-1, value.shape[-1]).numpy().copy()
        seen[name].append(array.reshape(len(array), 4, -1).swapaxes(0, 1) if name == "head_out" else array)

    handles = []
    for layer in model.get_submodule(path):
        for name, part in (("attn_out", attention), ("mlp_out", mlp)):
            module = layer.get_submodule(part)
            handles.append(module.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out)))
        for name, part in (("head_out", project), ("mlp_act", last)):
            module = layer.get_submodule(part)
            handles.append(module.register_forward_pre_hook(lambda _m, a, name=name: keep(name, a[0])))
    with torch.no_grad():
        out = call()
    for handle in handles:
        handle.remove()
    return {name: np.stack(values) for name, values in seen.items()}, out


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def run(folder: Path, texts: Path, out: Path, **options) -> TraceStore:
    # With attention, so that the run is computed in the order of eager attention, as the plain model is.
    settings = {"capture": ("attn", *CAPTURES), "dtype": "float32", **options}
    config = NextTokenConfig(model="tiny", model_path=folder, text_file=texts, out_dir=out, **settings)
    return TraceStore(extract_next_token(config))


def check_rows(store: TraceStore, folder: Path, family: str, compare: Callable[[np.ndarray, np.ndarray], None]) -> None:
    model = plain.load(folder)
    for row, line in enumerate(LINES):
        ids = torch.tensor([byte_tokenizer()(line)["input_ids"]])
        expected, out = hooked(model, DECODERS[family], lambda ids=ids: model(ids, use_cache=False))
        compare(store.attn_out(row, trim=True), expected["attn_out"])
        compare(store.mlp_out(row, trim=True), expected["mlp_out"])
        compare(store.head_out(row, trim=True), expected["head_out"])
        compare(store.mlp_act(row, trim=True), expected["mlp_act"])
        compare(store.logits(row, trim=True), out.logits[0].numpy())


@pytest.mark.parametrize("family", DECODERS)
def test_one_row_at_a_time_is_equal_bit_for_bit(family: str, tiny_folder, texts: Path, tmp_path: Path) -> None:
    store = run(tiny_folder(family), texts, tmp_path / "run", batch_size=1)
    check_rows(store, tiny_folder(family), family, np.testing.assert_array_equal)


@pytest.mark.parametrize("family", DECODERS)
def test_a_batch_gives_each_text_as_alone(family: str, tiny_folder, texts: Path, tmp_path: Path) -> None:
    store = run(tiny_folder(family), texts, tmp_path / "run")
    assert not failures(validate_run(store.run_dir))

    def close(stored: np.ndarray, expected: np.ndarray) -> None:
        assert plain.worst_difference(stored, expected) < ROUNDING

    check_rows(store, tiny_folder(family), family, close)


def test_shapes_and_conventions(tiny_folder, texts: Path, tmp_path: Path) -> None:
    store = run(tiny_folder("llama"), texts, tmp_path / "run", capture=CAPTURES, max_seq_len=40)
    assert store.arrays() == {
        "dec_attn_out": (4, 3, 40, 32),
        "dec_mlp_out": (4, 3, 40, 32),
        "dec_head_out": (4, 3, 4, 40, 8),
        "dec_mlp_act": (4, 3, 40, 48),
        "dec_logits": (4, 40, 258),
    }
    assert set(CAPTURES) <= store.meta["conventions"].keys()
    for row, n in enumerate(store.tokens["n_tokens"]):
        assert not store.logits(row)[n:].any() and not store.head_out(row)[:, :, n:].any()


def test_halves_add_up_to_the_stream(tiny_folder, texts: Path, tmp_path: Path) -> None:
    store = run(tiny_folder("gpt_neox"), texts, tmp_path / "run", capture=("resid", "attn_out", "mlp_out"))
    for row in range(len(LINES)):
        before, after = store.resid(row, stage="pre_attn"), store.resid(row, stage="post_mlp")
        np.testing.assert_array_equal(store.mlp_out(row) + store.attn_out(row) + before, after)  # in the model's order


def test_the_captures_of_a_multiple_choice_encoder_equal_each_choice_alone(tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tiny_encoder_folder("bert")
    config = MultipleChoiceConfig(
        model="tiny",
        model_path=folder,
        dataset="tinyworld",
        limit=2,
        capture=("attn", *CAPTURES[:-1]),
        dtype="float32",
        batch_size=1,
        out_dir=tmp_path / "run",
    )
    store, (model, tokenizer) = TraceStore(extract_multiple_choice(config)), plain_encoders.load(folder)
    assert not failures(validate_run(store.run_dir))
    for row in range(2):
        question, choices = store.tokens["question"][row], store.tokens["choice_texts"][row]
        for c, choice in enumerate(choices):
            pair = {k: v[:, None] for k, v in tokenizer(question, choice, return_tensors="pt").items()}
            expected, _ = hooked(model, BERT, lambda pair=pair: model(**pair))
            found = {
                "attn_out": store.mcq_attn_out(row, c, trim=True),
                "mlp_out": store.mcq_mlp_out(row, c, trim=True),
                "head_out": store.mcq_head_out(row, c, trim=True),
                "mlp_act": store.mcq_mlp_act(row, c, trim=True),
            }
            for name, values in expected.items():
                assert plain.worst_difference(found[name], values) < ROUNDING, (name, row, c)


def test_logits_of_a_multiple_choice_encoder_are_refused(tiny_encoder_folder, tmp_path: Path) -> None:
    config = MultipleChoiceConfig(
        model="tiny",
        model_path=tiny_encoder_folder("bert"),
        dataset="tinyworld",
        limit=2,
        capture=("hidden", "logits"),
        out_dir=tmp_path / "run",
    )
    with pytest.raises(ModelError, match=r"--capture logits: this model cannot give it"):
        extract_multiple_choice(config)
    assert not list(tmp_path.iterdir())
