"""Encoders over any text, with a masked-language-modelling head and without: equal to plain transformers by row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plain
import plain_masked
import pytest
import torch
import transformers as hf
from support.encoders import (
    ENCODERS,
    VOCABULARY,
    pair_tokenizer,
    save_tiny_masked_encoder,
)
from support.models import checked_and_enlarged

from decision_traces import TraceStore
from decision_traces.errors import ModelError
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures, validate_run

CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
TEXTS = ["The cat sat on the mat.", "a", "Ωμέγα 🙂", "", "One more line of plain text, longer.", "ab", "the end"]
START, END, MASK = 1, 2, 259
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "lines.csv"
    path.write_text("text\n" + "".join(f'"{t}"\n' for t in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_masked_encoder(tmp_path_factory.mktemp(family) / family, family)
        return made[family]

    return get


def run(folder: Path, texts: Path, out: Path, **options) -> TraceStore:
    settings = {"capture": CAPTURES, "dtype": "float32", **options}
    return TraceStore(
        extract_texts(TextConfig(model="tiny", model_path=folder, text_file=texts, out_dir=out, **settings))
    )


@pytest.fixture(scope="module")
def masked(folder, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    out = tmp_path_factory.mktemp("masked") / "run"
    return run(folder("bert"), texts, out, batch_size=1, mask_prob=0.3, seed=5)


def by_accessor(store: TraceStore, row: int) -> dict[str, np.ndarray]:
    """Every array of one example through the accessors, without padding."""
    at = {"side": "enc", "trim": True}
    found = {
        "enc_self_attn": store.attn(row, **at),
        "enc_hidden": store.hidden(row, **at),
        "enc_res_embed": store.resid_embed(row, **at),
        "enc_attn_out": store.attn_out(row, **at),
        "enc_head_out": store.head_out(row, **at),
        "enc_mlp_out": store.mlp_out(row, **at),
        "enc_mlp_act": store.mlp_act(row, **at),
        **{f"enc_self_{w}": store.qkv(row, which=w, **at) for w in "qkv"},
        **{f"enc_res_{s}": store.resid(row, stage=s, **at) for s in ("pre_attn", "post_attn", "post_mlp")},
    }
    return found | ({"enc_logits": store.logits(row, **at)} if "enc_logits" in store.arrays() else {})


def ids_read(store: TraceStore, row: int) -> list[int]:
    return store.tokens["input_ids"][row][: store.tokens["n_tokens"][row]].tolist()


def true_ids(text: str) -> list[int]:
    return pair_tokenizer(types=False)(text)["input_ids"]


# -- with a masked-language-modelling head --------------------------------------------------------------------


def test_a_masked_run_holds_what_the_model_computes_of_the_masked_ids(masked: TraceStore, folder) -> None:
    model = plain_masked.load(folder("bert"), head=True)
    for row in range(len(TEXTS)):
        expected = plain_masked.run_alone(model, "bert", ids_read(masked, row))
        found = by_accessor(masked, row)
        assert set(found) == set(expected) == set(masked.arrays())
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert"])
def test_a_batch_gives_each_masked_row_as_alone(family: str, folder, texts: Path, tmp_path: Path) -> None:
    store = run(folder(family), texts, tmp_path / "run", batch_size=4)
    assert not failures(validate_run(store.run_dir))
    model = plain_masked.load(folder(family), head=True)
    for row in (0, 1, 3, 4):
        expected = plain_masked.run_alone(model, family, ids_read(store, row))
        for name, values in by_accessor(store, row).items():
            assert plain.worst_difference(values, expected[name]) < ROUNDING, (name, row)


def test_only_words_are_masked_and_of_every_text_with_one_at_least_one(masked: TraceStore) -> None:
    shares = []
    for row, text in enumerate(TEXTS):
        read, truth = ids_read(masked, row), true_ids(text)
        at = [p for p, (a, b) in enumerate(zip(read, truth, strict=True)) if a != b]
        assert masked.tokens["masked_pos"][row].tolist() == at
        assert {read[p] for p in at} <= {MASK}
        assert read[0] == START and read[-1] == END
        assert bool(at) == bool(text)
        assert masked.tokens["text"][row] == text
        shares += [len(at) / (len(read) - 2)] if len(read) > 20 else []
    assert all(0.05 < share < 0.7 for share in shares)
    assert masked.meta["n_masked"] == sum(len(p) for p in masked.tokens["masked_pos"])


def test_outcomes_are_those_of_the_plain_logits_at_the_masked_positions(masked: TraceStore, folder) -> None:
    model, right = plain_masked.load(folder("bert"), head=True), []
    for row, text in enumerate(TEXTS):
        told, truth = masked.tokens.iloc[row], true_ids(text)
        logits = plain_masked.run_alone(model, "bert", ids_read(masked, row))["enc_logits"].astype(np.float64)
        for i, p in enumerate(told["masked_pos"]):
            probs = np.exp(logits[p] - logits[p].max())
            probs /= probs.sum()
            assert told["masked_true_ids"][i] == truth[p]
            assert told["masked_pred_ids"][i] == probs.argmax()
            assert told["masked_correct"][i] == (probs.argmax() == truth[p])
            assert told["masked_true_ranks"][i] == 1 + (logits[p] > logits[p][truth[p]]).sum()
            np.testing.assert_allclose(told["masked_true_probs"][i], probs[truth[p]], atol=1e-5)
            np.testing.assert_allclose(told["masked_pred_probs"][i], probs.max(), atol=1e-5)
            np.testing.assert_allclose(told["masked_entropies"][i], -(probs * np.log(probs)).sum(), atol=1e-4)
            right.append(probs.argmax() == truth[p])
    assert masked.meta["masked_accuracy"] == pytest.approx(np.mean(right))


def test_masked_tokens_are_told_as_text(masked: TraceStore) -> None:
    row = masked.tokens.iloc[0]
    assert [TEXTS[0][p - 1] for p in row["masked_pos"]] == row["masked_true_tokens"].tolist()
    assert [row["tokens"][p] for p in row["masked_pos"]] == ["<m>"] * len(row["masked_pos"])


def test_a_masked_run_validates(masked: TraceStore) -> None:
    checks = validate_run(masked.run_dir)
    assert not failures(checks)
    assert {"masked_pos", "masked tokens in input_ids", "masked_pred_ids"} <= {c.name for c in checks}


@pytest.mark.parametrize(("change", "same"), [({"limit": 3}, True), ({"seed": 6}, False)], ids=["limit", "seed"])
def test_masks_depend_on_the_seed_and_not_on_the_limit(
    change: dict, same: bool, masked: TraceStore, folder, texts: Path, tmp_path: Path
) -> None:
    options = {"capture": (), "mask_prob": 0.3, "seed": 5, **change}
    other = run(folder("bert"), texts, tmp_path / "run", **options)
    assert [
        masked.tokens["masked_pos"][row].tolist() == other.tokens["masked_pos"][row].tolist() for row in (0, 2)
    ] == [
        same,
        same,
    ]


def test_a_mask_prob_of_0_leaves_the_texts_as_they_are(folder, texts: Path, tmp_path: Path) -> None:
    store = run(folder("bert"), texts, tmp_path / "run", capture=("hidden",), mask_prob=0.0)
    assert [ids_read(store, row) for row in range(len(TEXTS))] == [true_ids(t) for t in TEXTS]
    assert [len(p) for p in store.tokens["masked_pos"]] == [0] * len(TEXTS)
    assert store.meta["n_masked"] == 0 and "masked_accuracy" not in store.meta
    assert not failures(validate_run(store.run_dir))


def test_a_mask_of_the_users_own_is_an_outcome_without_a_truth(folder, tmp_path: Path) -> None:
    texts = ["The capital of <m> is <m>.", "no mask here"]
    (tmp_path / "own.txt").write_text("\n".join(texts))
    store = run(folder("bert"), tmp_path / "own.txt", tmp_path / "run", capture=("hidden",))
    assert not failures(validate_run(store.run_dir))
    row, other = store.tokens.iloc[0], store.tokens.iloc[1]
    ids = [*true_ids("The capital of ")[:-1], MASK, *true_ids(" is ")[1:-1], MASK, *true_ids(".")[1:]]
    at = [i for i, token in enumerate(ids) if token == MASK]
    assert row["masked_pos"].tolist() == at and ids_read(store, 0) == ids
    model = plain_masked.load(folder("bert"), head=True)
    logits = plain_masked.run_alone(model, "bert", ids)["enc_logits"][at].astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert row["masked_pred_ids"].tolist() == probs.argmax(1).tolist()
    np.testing.assert_allclose(row["masked_pred_probs"], probs.max(1), rtol=1e-5)
    np.testing.assert_allclose(row["masked_entropies"], -(probs * np.log(probs)).sum(1), rtol=1e-5)
    for name in ("true_ids", "true_tokens", "true_ranks", "true_probs", "correct"):
        assert pd.isna(row[f"masked_{name}"]).tolist() == [True, True], name
    assert len(other["masked_pos"]) >= 1 and not pd.isna(other["masked_true_ids"]).any()
    assert (store.meta["n_own_masks"], store.meta["n_masked"]) == (2, len(other["masked_pos"]))


def test_masks_are_added_to_the_users_own_where_that_is_asked(folder, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("The capital of <m> is somewhere.")
    store = run(folder("bert"), tmp_path / "own.txt", tmp_path / "run", capture=("hidden",), mask_prob=0.3)
    truths = store.tokens.iloc[0]["masked_true_ids"]
    assert pd.isna(truths).sum() == 1 and len(truths) > 1 and not failures(validate_run(store.run_dir))


def test_a_tokenizer_without_a_mask_token_is_refused_unless_nothing_is_to_be_masked(
    texts: Path, tmp_path: Path
) -> None:
    bare = save_tiny_masked_encoder(tmp_path / "bare", "bert", mask=False)
    with pytest.raises(ModelError, match=r"has no mask token; give --mask_prob 0"):
        run(bare, texts, tmp_path / "run", capture=("hidden",))
    assert not list(tmp_path.glob("*run*"))
    assert run(bare, texts, tmp_path / "run", capture=("hidden",), mask_prob=0.0).n == len(TEXTS)


# -- padding that the model would see -------------------------------------------------------------------------


def conv_bert(folder: Path, auto_class: type) -> Path:
    """A ConvBERT: its convolution over positions reads padding, so that padded rows come out otherwise."""
    torch.manual_seed(7)
    config = hf.ConvBertConfig(
        vocab_size=MASK + 1,
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_ratio=2,
        conv_kernel_size=5,
        intermediate_size=48,
        max_position_embeddings=96,
        pad_token_id=0,
    )
    checked_and_enlarged(auto_class.from_config(config).eval(), "convbert").save_pretrained(folder)
    pair_tokenizer(types=False, mask=True).save_pretrained(folder)
    return folder


def hidden_alone(model, **inputs) -> np.ndarray:
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    return torch.stack([h[0] for h in out.hidden_states]).numpy()


def test_padding_changes_the_numbers_of_this_model(tmp_path: Path) -> None:
    model = plain_masked.load(conv_bert(tmp_path / "conv", hf.AutoModelForMaskedLM), head=True)
    ids = true_ids("ab")
    alone = hidden_alone(model, input_ids=torch.tensor([ids]))
    mask = torch.tensor([[1] * len(ids) + [0] * 6])
    padded = hidden_alone(model, input_ids=torch.tensor([[*ids, *[0] * 6]]), attention_mask=mask)
    assert np.abs(padded[-1, : len(ids)] - alone[-1]).max() > 1e-2


def test_padding_never_changes_a_stored_number_of_a_masked_run(texts: Path, tmp_path: Path) -> None:
    folder = conv_bert(tmp_path / "conv", hf.AutoModelForMaskedLM)
    store = run(folder, texts, tmp_path / "run", capture=("hidden", "logits"), batch_size=8)
    model = plain_masked.load(folder, head=True)
    assert store.meta["rows_padded"] is False and not failures(validate_run(store.run_dir))
    for row in range(len(TEXTS)):
        expected = hidden_alone(model, input_ids=torch.tensor([ids_read(store, row)]))
        assert plain.worst_difference(store.hidden(row, side="enc", trim=True), expected) < ROUNDING


def test_padding_never_changes_a_stored_number_of_a_multiple_choice_run(tmp_path: Path) -> None:
    from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice

    folder = conv_bert(tmp_path / "conv", hf.AutoModelForMultipleChoice)
    config = MultipleChoiceConfig(
        model="tiny", model_path=folder, dataset="tinyworld", limit=3, dtype="float32", out_dir=tmp_path / "run"
    )
    store = TraceStore(extract_multiple_choice(config))
    model = hf.AutoModelForMultipleChoice.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    for row, (question, choices) in enumerate(zip(store.tokens["question"], store.tokens["choice_texts"], strict=True)):
        for c, choice in enumerate(choices):
            pair = tokenizer(question, choice, return_tensors="pt")
            expected = hidden_alone(model, **{k: v[:, None] for k, v in pair.items()})
            assert plain.worst_difference(store.mcq_hidden(row, c, trim=True), expected) < ROUNDING


# -- without a head -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(folder, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    out = tmp_path_factory.mktemp("encoded") / "run"
    return run(folder("bert"), texts, out, batch_size=1, task="encode", capture=CAPTURES[:-1])


def test_an_encoder_without_a_head_is_traced_whole(encoded: TraceStore, folder) -> None:
    model = plain_masked.load(folder("bert"), head=False)
    for row, text in enumerate(TEXTS):
        assert ids_read(encoded, row) == true_ids(text)
        expected, found = plain_masked.run_alone(model, "bert", true_ids(text)), by_accessor(encoded, row)
        np.testing.assert_array_equal(found["enc_hidden"][-1], expected.pop("last_hidden_state"))
        assert set(found) == set(expected) == set(encoded.arrays())
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_an_encoders_run_predicts_nothing_and_validates(encoded: TraceStore) -> None:
    assert (encoded.arch, encoded.meta["objective"], encoded.meta["task"]) == ("enc", "encode", "encode")
    assert not [c for c in encoded.columns if c.startswith(("next_", "masked_", "choice_"))]
    assert not failures(validate_run(encoded.run_dir))


def test_auto_takes_the_task_whose_head_the_checkpoint_has(folder, texts: Path, tmp_path: Path) -> None:
    hf.AutoModel.from_pretrained(folder("distilbert")).save_pretrained(tmp_path / "body")
    pair_tokenizer(types=False).save_pretrained(tmp_path / "body")
    found = {
        name: run(place, texts, tmp_path / f"run_{name}", capture=("hidden",), limit=2).meta["task"]
        for name, place in {"head": folder("distilbert"), "body": tmp_path / "body"}.items()
    }
    assert found == {"head": "masked", "body": "encode"}


def test_logits_of_an_encoder_without_a_head_are_refused(folder, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--capture logits: .*it has no language-modelling head.*Leave logits out"):
        run(folder("bert"), texts, tmp_path / "run", task="encode", capture=("hidden", "logits"))


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(texts: Path, tmp_path: Path) -> None:
    hf.BertModel(ENCODERS["bert"](vocab_size=VOCABULARY)).save_pretrained(tmp_path / "body")
    pair_tokenizer().save_pretrained(tmp_path / "body")
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights"):
        run(tmp_path / "body", texts, tmp_path / "run", task="masked")
