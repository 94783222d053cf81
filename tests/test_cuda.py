"""On a CUDA device: the numbers of plain transformers there, page-locked copies that nothing overtakes, a full GPU.

Skipped where there is none.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultipleChoice

from decision_traces import TraceStore
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.progress import Silent
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

ALL = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "opt")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    words = np.random.default_rng(0).integers(97, 123, (40, 60))
    file.write_text("\n".join(bytes(w[: 2 + 58 * i // 40].tolist()).decode() for i, w in enumerate(words)))
    return file


def extracted(folder: Path, texts: Path, out: Path, progress: Silent | None = None, **options: object) -> TraceStore:
    config = NextTokenConfig(model_path=folder, text_file=texts, out_dir=out, device="cuda", **options)  # type: ignore[arg-type]
    store = TraceStore(extract_next_token(config, progress))
    assert failures(validate_run(store.run_dir)) == []
    return store


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_what_plain_transformers_computes_on_the_device(
    family: str, tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder(family)
    store = extracted(
        folder, texts, tmp_path / "run", capture=ALL, dtype="float32", model_dtype="float32", batch_size=1
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").cuda().eval()
    assert store.meta["environment"]["device"].startswith("cuda")
    for example, ids in zip(store.tokens["example_id"], store.tokens["input_ids"], strict=True):
        n = int(store.tokens.set_index("example_id").loc[example, "n_tokens"])
        with torch.inference_mode():
            out = model(
                torch.tensor([list(ids[:n])]).cuda(), output_hidden_states=True, output_attentions=True, use_cache=False
            )
        for layer, hidden in enumerate(out.hidden_states):
            assert np.array_equal(store.hidden(example, layer=layer, trim=True), hidden[0].cpu().numpy())
        for layer, attn in enumerate(out.attentions):
            assert np.array_equal(store.attn(example, layer=layer, trim=True), attn[0].cpu().numpy())
        np.testing.assert_array_equal(store.logits(example, trim=True), out.logits[0].cpu().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("capture", [("hidden", "resid", "qkv"), ALL])
def test_batches_of_ragged_texts_are_certified_in_every_type(
    dtype: str, capture: tuple[str, ...], tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    store = extracted(tiny_folder("llama"), texts, tmp_path / "run", capture=capture, model_dtype=dtype)
    assert store.meta["certificate"]["passed"]


def test_copies_beside_the_computing_take_what_was_computed(
    tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("gpt2")
    options = {"capture": ALL, "dtype": "float32", "model_dtype": "float32"}
    store = extracted(folder, texts, tmp_path / "gpu", **options)
    config = NextTokenConfig(model_path=folder, text_file=texts, out_dir=tmp_path / "cpu", device="cpu", **options)  # type: ignore[arg-type]
    cpu = TraceStore(extract_next_token(config))
    for example in cpu.tokens["example_id"]:
        for name in ("attn", "hidden", "logits"):
            here, there = (getattr(s, name)(example, trim=True) for s in (store, cpu))
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)
        for which in ("q", "k", "v"):
            here, there = (s.qkv(example, which=which, trim=True) for s in (store, cpu))
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["next", "last", "0,5"])
def test_kept_positions_are_those_of_a_run_that_keeps_all(
    positions: str, tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    options = {"capture": ("hidden", "qkv"), "dtype": "float32", "model_dtype": "float32"}
    whole = extracted(folder, texts, tmp_path / "all", **options)
    some = extracted(folder, texts, tmp_path / "some", positions=positions, **options)
    for example, n in zip(whole.tokens["example_id"], whole.tokens["n_tokens"], strict=True):
        at = {"next": [max(0, n - 2)], "last": [n - 1]}.get(positions, [p for p in (0, 5) if p < n])
        kept = np.asarray(some.hidden(example))[:, : len(at)]
        np.testing.assert_array_equal(kept, np.asarray(whole.hidden(example))[:, at])


def test_encoders_on_the_device(tiny_encoder_folder: Callable[[str], Path], texts: Path, tmp_path: Path) -> None:
    folder = tiny_encoder_folder("bert")
    config = TextConfig(
        model_path=folder, text_file=texts, out_dir=tmp_path / "run", device="cuda", capture=("hidden",),
        dtype="float32", batch_size=1,
    )  # fmt: skip
    store = TraceStore(extract_texts(config))
    assert failures(validate_run(store.run_dir)) == []
    model = AutoModelForMultipleChoice.from_pretrained(folder, dtype=torch.float32).base_model.cuda().eval()
    for example, ids, n in zip(
        store.tokens["example_id"], store.tokens["input_ids"], store.tokens["n_tokens"], strict=True
    ):
        with torch.inference_mode():
            states = model(torch.tensor([list(ids[:n])]).cuda(), output_hidden_states=True).hidden_states
        plain = torch.cat(states).cpu().numpy()
        np.testing.assert_allclose(store.hidden(example, side="enc", trim=True), plain, rtol=1e-4, atol=1e-5)


class Said(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, message: str) -> None:
        self.words.append(message)


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Leave torch so many bytes of the device; all of it again afterwards."""
    total = torch.cuda.get_device_properties(0).total_memory
    yield lambda size: torch.cuda.set_per_process_memory_fraction(size / total)
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_the_device_does_not_hold_is_halved(
    tiny_folder: Callable[..., Path], little_memory: Callable[[int], None], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["x" * 120] * 64))
    folder = tiny_folder("gpt2")
    reference = extracted(folder, texts, tmp_path / "all", capture=("attn", "hidden"), dtype="float32")
    torch.cuda.empty_cache()
    little_memory(torch.cuda.memory_allocated() + (24 << 20))
    said = Said()
    store = extracted(folder, texts, tmp_path / "less", said, capture=("attn", "hidden"), dtype="float32")
    assert any("halved" in words for words in said.words), said.words
    example = reference.tokens["example_id"][63]
    np.testing.assert_allclose(store.hidden(example), reference.hidden(example), rtol=1e-4, atol=1e-5)
