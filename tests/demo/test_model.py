"""The embedded model, judged with plain transformers, apart from this package's own code."""

import ast
import errno
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from decision_traces.data import tinyworld
from decision_traces.demo import MODEL_DIR
from dev.demo_model.evaluate import BEGIN, END, Figures, decided_layer, write
from dev.demo_model.ngram import KneserNey
from dev.demo_model.train import save


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(MODEL_DIR).eval()


def test_the_weights_are_small() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 6_000_000
    assert not list(MODEL_DIR.glob("*.bin"))


def test_what_cannot_be_written_whole_leaves_the_old_model_and_card(tokenizer, model, tmp_path, monkeypatch) -> None:
    old = {"config.json": "old", "model.safetensors": "old", "README.md": f"{BEGIN}\nold\n{END}"}
    out = tmp_path / "model"
    out.mkdir()
    for name, words in old.items():
        (out / name).write_text(words)

    def half(folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", half)
    with pytest.raises(OSError, match="No space"):
        save(out, tokenizer, model, {"texts": 1})
    with pytest.raises(UnicodeEncodeError):  # half of a character: it ends the writing as a full disk would
        write(out, Figures("test", 1, 1, 1, 1.0, None, None, 1.0, {}, {}), "\ud800")
    assert {p.name: p.read_text() for p in out.iterdir() if p.name != "figures.json"} == old
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_folder_is_known_without_torch() -> None:
    source = Path(MODEL_DIR.parent / "__init__.py").read_text(encoding="utf-8")
    imported = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(n) for n in imported] == ["from pathlib import Path"]


def test_shape(model: GPT2LMHeadModel) -> None:
    assert 4 <= model.config.n_layer <= 6
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight


def test_tokenizer(tokenizer) -> None:
    text = "Mira keeps a cat – naïve 猫."
    found = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.is_fast
    assert tokenizer.decode(found["input_ids"]) == text
    assert found["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (found["offset_mapping"][0][0], found["offset_mapping"][-1][1]) == (0, len(text))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert len(tokenizer) <= 1024


def test_answers_are_single_tokens_and_texts_fit(tokenizer) -> None:
    lengths = []
    for split in tinyworld.SPLITS:
        for example in tinyworld.examples(split, 500):
            answer = example.text[example.text.rindex(" ") :]
            row = tokenizer(example.text)["input_ids"]
            assert tokenizer(answer)["input_ids"] == row[-1:], answer
            lengths.append(len(row))
    assert max(lengths) <= 96
    assert min(lengths) <= 15
    assert max(lengths) >= 75


def test_facts_and_copies_are_right_on_held_out_worlds(model: GPT2LMHeadModel, tokenizer) -> None:
    right = defaultdict(list)
    for example in tinyworld.examples("test", 320):
        ids = tokenizer(example.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            best = model(ids).logits[0, -2].argmax()
        right[example.fields["kind"]].append(bool(best == ids[0, -1]))
    assert np.mean(right["fact"]) > 0.9
    assert np.mean(right["copy"]) > 0.9
    everything = [r for kind in right.values() for r in kind]
    assert 0.8 < np.mean(everything) < 0.98, "there must be wrong decisions to look at, but not many"


def test_the_card_states_the_figures() -> None:
    figures = json.loads((MODEL_DIR / "figures.json").read_text(encoding="utf-8"))
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert figures["loss"] < figures["five_gram_loss"] - 0.1
    assert figures["five_gram_loss"] < figures["bigram_loss"]
    for kind, found in figures["kinds"].items():
        assert re.search(rf"\| {kind} \| {found['items']} \| {found['accuracy']:.1%} \|", card)
    assert f"{figures['loss']:.3f}" in card


def test_decided_layer() -> None:
    assert decided_layer([3, 5, 7, 7, 7]) == 2
    assert decided_layer([7, 5, 7, 3, 7]) == 4
    assert decided_layer([7, 7, 7]) == 0


def test_kneser_ney_bigram_by_hand() -> None:
    # Texts: a b, a b, a c over the vocabulary {a, b, c} = {0, 1, 2}; the mark of the beginning is ^.
    # Bigrams: ^a 3, ab 2, ac 1; seen once: 1, twice: 1, so D2 = 1/3. After how many: a, b, c 1 each: D1 = 1.
    baseline = KneserNey([[0, 1], [0, 1], [0, 2]], 2, 3)
    unigram = (1 - 1) / 3 + 1 * 3 / 3 / 3  # what the discount takes off goes to the even share
    a = (3 - 1 / 3) / 3 + (1 / 3) * 1 / 3 * unigram
    b = (2 - 1 / 3) / 3 + (1 / 3) * 2 / 3 * unigram
    np.testing.assert_allclose(baseline.losses([0, 1]), [-np.log(a), -np.log(b)])


def test_kneser_ney_sums_to_one() -> None:
    rng = np.random.default_rng(0)
    baseline = KneserNey([rng.integers(0, 6, 30).tolist() for _ in range(20)], 3, 6)
    for context in ([], [1], [2, 3], [5, 5]):
        chances = [np.exp(-baseline.losses([*context, token])[-1]) for token in range(6)]
        assert sum(chances) == pytest.approx(1)
