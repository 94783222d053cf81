"""Encoder-decoders end to end: what is on disk equals plain transformers on each text with its target alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plain
import plain_encoder_decoders as plain_pairs
import pytest
import torch
from support.encoder_decoders import ENCODER_DECODERS, save_tiny_encoder_decoder

from decision_traces import TraceStore
from decision_traces.errors import SelectionError, UsageError
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.long  # minutes; test_texts and the matrix take encoder-decoders too

CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
TEXTS = ["The cat sat on the mat.", "a", "Ωμέγα 🙂", "One more line of plain text, longer."]
TARGETS = ["Die Katze.", "much longer than its text", "x", "东京"]
ROUNDING = 2e-5


def ids_of(text: str) -> list[int]:
    """The byte tokenizer written out once more: `<s>` bytes `<e>`, ids 3 on in the order of GPT-2's byte alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    characters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    alphabet = sorted(characters.values())
    return [1, *(3 + alphabet.index(characters[b]) for b in text.encode()), 2]


def read_by_the_decoder(family: str, target: str) -> list[int]:
    """The start token and the target without its last token; mBART starts with the target's own last token."""
    start = {"t5": 0, "bart": 2, "marian": 0, "pegasus": 0, "mbart": 2}[family]
    return [start, *ids_of(target)[:-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_encoder_decoder(tmp_path_factory.mktemp(family) / family, family)
        return made[family]

    return get


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pairs")
    (place / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    (place / "targets.txt").write_text("\n".join(TARGETS) + "\n", encoding="utf-8")
    return place


def run(folder: Path, files: Path, out: Path, **options) -> TraceStore:
    settings = {"capture": CAPTURES, "dtype": "float32", "targets_file": files / "targets.txt", **options}
    return TraceStore(
        extract_texts(
            TextConfig(model="tiny", model_path=folder, text_file=files / "texts.txt", out_dir=out, **settings)
        )
    )


@pytest.fixture(scope="module")
def complete(folder, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TraceStore]:
    """The run of everything of a family, one row a batch."""
    made: dict[str, TraceStore] = {}

    def get(family: str) -> TraceStore:
        if family not in made:
            out = tmp_path_factory.mktemp("complete") / family
            made[family] = run(folder(family), files, out, batch_size=1, all_positions=True)
        return made[family]

    return get


def by_accessor(store: TraceStore, row: int) -> dict[str, np.ndarray]:
    """Every array of one example through the accessors, without padding."""
    found = {"dec_logits": store.logits(row, trim=True)}
    for side in ("enc", "dec"):
        found |= {
            f"{side}_hidden": store.hidden(row, side=side, trim=True),
            f"{side}_res_embed": store.resid_embed(row, side=side, trim=True),
            f"{side}_mlp_out": store.mlp_out(row, side=side, trim=True),
            f"{side}_mlp_act": store.mlp_act(row, side=side, trim=True),
        }
        stages = ("pre_attn", "post_attn", *(("post_cross",) if side == "dec" else ()), "post_mlp")
        found |= {f"{side}_res_{s}": store.resid(row, stage=s, side=side, trim=True) for s in stages}
        for kind in ("self", *(("cross",) if side == "dec" else ())):
            word = "" if kind == "self" else "cross_"
            found |= {
                f"{side}_{kind}_attn": store.attn(row, side=side, kind=kind, trim=True),
                f"{side}_{word}attn_out": store.attn_out(row, side=side, kind=kind, trim=True),
                f"{side}_{word}head_out": store.head_out(row, side=side, kind=kind, trim=True),
            }
            found |= {
                f"{side}_{kind}_{w}": store.qkv(row, which=w, side=side, kind=kind, trim=True) for w in ("q", "k", "v")
            }
    return found


def test_every_family_has_its_independent_account() -> None:
    assert set(plain_pairs.PLACES) == set(ENCODER_DECODERS)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_one_row_at_a_time_is_equal_bit_for_bit(family: str, complete, folder) -> None:
    store, model = complete(family), plain_pairs.load(folder(family))
    for row in range(len(TEXTS)):
        expected = plain_pairs.run_alone(model, family, ids_of(TEXTS[row]), read_by_the_decoder(family, TARGETS[row]))
        found = by_accessor(store, row)
        assert set(found) == set(expected) == set(store.arrays())
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("family", ["t5", "bart", "pegasus"])
def test_a_batch_gives_each_example_as_alone(family: str, folder, files: Path, tmp_path: Path) -> None:
    store, model = run(folder(family), files, tmp_path / "run", batch_size=4), plain_pairs.load(folder(family))
    assert not failures(validate_run(store.run_dir))
    for row in range(len(TEXTS)):
        expected = plain_pairs.run_alone(model, family, ids_of(TEXTS[row]), read_by_the_decoder(family, TARGETS[row]))
        for name, values in by_accessor(store, row).items():
            there = expected[name] != 0  # a ReLU leaves so many zeros that no median is to be had
            assert plain.worst_difference(values[there], expected[name][there]) < ROUNDING, (name, row)
            assert np.abs(values[~there]).max(initial=0.0) < ROUNDING, (name, row)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_decoder_reads_what_it_reads_in_training(family: str, complete, folder) -> None:
    store, model = complete(family), plain_pairs.load(folder(family))
    for row, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        labels = torch.tensor([ids_of(target)])
        expected = model.prepare_decoder_input_ids_from_labels(labels=labels)[0].tolist()
        assert expected == read_by_the_decoder(family, target)
        assert store.encodings(row, side="dec", trim=True)["input_ids"].tolist() == expected
        assert store.encodings(row, side="enc", trim=True)["input_ids"].tolist() == ids_of(text)
        assert (store.n_tokens(row, side="dec"), store.n_tokens(row, side="enc")) == (len(expected), len(ids_of(text)))


def test_the_token_columns_of_t5_are_these(complete) -> None:
    store = complete("t5")
    row, filled = store.tokens.iloc[2], store.encodings(2, side="dec")
    assert row["text"] == "Ωμέγα 🙂" and row["target_text"] == "x"
    assert row["dec_n_tokens"] == 3 and row["dec_input_ids"].tolist() == [0, 1, ids_of("x")[1]]
    assert row["dec_tokens"].tolist() == ["<p>", "<s>", "x"]
    longest = 1 + len(TARGETS[1])  # as many as the decoder reads: the end token is not read, the start token is
    assert row["dec_attention_mask"].tolist() == [1, 1, 1] and not row["dec_truncated"]
    assert filled["attention_mask"].tolist() == [1, 1, 1] + [0] * (longest + 1 - 3)
    assert set(filled["input_ids"][3:]) == {0} and set(filled["tokens"][3:]) == {"<p>"}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_outcome_is_the_decoders_at_the_last_known_position(family: str, complete, folder) -> None:
    store, model = complete(family), plain_pairs.load(folder(family))
    for row, target in enumerate(TARGETS):
        read = read_by_the_decoder(family, target)
        logits = plain_pairs.run_alone(model, family, ids_of(TEXTS[row]), read)["dec_logits"].astype(np.float64)
        check_outcome(store.tokens.iloc[row], logits[len(read) - 2], read[-1], len(read) - 2)


def check_outcome(outcome: pd.Series, scores: np.ndarray, truth: int, at: int) -> None:
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    best, second = np.sort(scores)[[-1, -2]]
    assert outcome["next_pos"] == at
    assert outcome["next_true_id"] == truth
    assert outcome["next_pred_id"] == int(probs.argmax())
    assert outcome["next_correct"] == (truth == int(probs.argmax()))
    assert outcome["next_true_rank"] == 1 + int((scores > scores[truth]).sum())
    assert list(outcome["next_topk_ids"]) == np.argsort(-scores)[:10].tolist()
    np.testing.assert_allclose(outcome["next_true_prob"], probs[truth], atol=1e-5)
    np.testing.assert_allclose(outcome["next_pred_prob"], probs.max(), atol=1e-5)
    np.testing.assert_allclose(outcome["next_entropy"], -(probs * np.log(probs)).sum(), atol=1e-4)
    np.testing.assert_allclose(outcome["next_margin"], best - second, rtol=1e-3, atol=1e-4)


def test_all_positions_are_those_of_the_decoder(complete, folder) -> None:
    table = pd.read_parquet(complete("t5").run_dir / "token_outcomes.parquet")
    model = plain_pairs.load(folder("t5"))
    for row, target in enumerate(TARGETS):
        read, mine = read_by_the_decoder("t5", target), table[table["row"] == row]
        logits = plain_pairs.run_alone(model, "t5", ids_of(TEXTS[row]), read)["dec_logits"]
        assert mine["pos"].tolist() == list(range(len(read) - 1))
        assert mine["true_id"].tolist() == read[1:]
        assert mine["pred_id"].tolist() == logits[:-1].argmax(-1).tolist()


@pytest.fixture(scope="module")
def untold(folder, files: Path, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return run(folder("bart"), files, tmp_path_factory.mktemp("untold") / "run", targets_file=None, batch_size=1)


def test_without_targets_the_decoder_reads_its_start_token_and_nothing_is_predicted(untold, folder) -> None:
    store = untold
    for row in range(len(TEXTS)):
        assert store.encodings(row, side="dec", trim=True)["input_ids"].tolist() == [2]
    assert store.tokens["target_text"].isna().all()
    assert store.tokens["next_pos"].tolist() == [-1] * len(TEXTS)
    assert store.tokens[["next_true_id", "next_pred_id", "next_true_prob", "next_topk_ids"]].isna().all(axis=None)
    assert store.meta["n_predictions"] == 0
    assert not failures(validate_run(store.run_dir))
    expected = plain_pairs.run_alone(plain_pairs.load(folder("bart")), "bart", ids_of(TEXTS[3]), [2])
    for name, values in by_accessor(store, 3).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_dec_max_len_cuts_targets_and_says_so(folder, files: Path, tmp_path: Path) -> None:
    store = run(folder("t5"), files, tmp_path / "run", capture=("hidden",), dec_max_len=6)
    cut = [1 + len(ids_of(t)) - 1 > 6 for t in TARGETS]
    assert cut == [True, True, False, True]
    assert store.tokens["dec_truncated"].tolist() == cut
    assert not store.tokens["truncated"].any()
    assert store.tokens["dec_n_tokens"].tolist() == [6, 6, 3, 6]
    assert store.encodings(1, side="dec")["input_ids"].tolist() == read_by_the_decoder("t5", TARGETS[1])[:6]
    assert store.arrays()["dec_hidden"] == (4, 4, 6, 32)
    assert not failures(validate_run(store.run_dir))


def test_max_seq_len_cuts_texts_alone(folder, files: Path, tmp_path: Path) -> None:
    store = run(folder("t5"), files, tmp_path / "run", capture=("hidden",), max_seq_len=10)
    assert store.tokens["truncated"].tolist() == [len(ids_of(t)) > 10 for t in TEXTS]
    assert not store.tokens["dec_truncated"].any()
    assert store.arrays()["enc_hidden"] == (4, 3, 10, 32)


def test_a_length_that_no_memory_could_hold_is_refused(folder, files: Path, tmp_path: Path) -> None:
    longest = max(len(ids_of(text)) for text in TEXTS)  # T5 was built for no length, so that any could be asked for
    said = rf"--max_seq_len 1000000000: .* the longest text has {longest} tokens\. Give 33554432 or less, or auto\."
    with pytest.raises(UsageError, match=said):
        run(folder("t5"), files, tmp_path / "run", capture=("hidden",), max_seq_len=10**9)
    assert not (tmp_path / "run").exists()


def test_a_target_longer_than_the_decoder_was_built_for_is_cut_or_refused(folder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("short\n")
    (tmp_path / "targets.txt").write_text("long " * 40 + "\n")
    store = run(folder("bart"), tmp_path, tmp_path / "run", capture=("hidden",))
    assert (store.tokens["dec_n_tokens"][0], store.tokens["dec_truncated"][0]) == (96, True)
    with pytest.raises(UsageError, match=r"--dec_max_len 97: BartForConditionalGeneration was built for 96 tokens"):
        run(folder("bart"), tmp_path, tmp_path / "more", dec_max_len=97)
    assert not (tmp_path / "more").exists()


def test_positions_next_keeps_one_of_the_decoder_and_all_of_the_encoder(
    complete, folder, files: Path, tmp_path: Path
) -> None:
    whole, some = complete("t5"), run(folder("t5"), files, tmp_path / "run", batch_size=1, positions="next")
    assert not failures(validate_run(some.run_dir))
    at = [len(read_by_the_decoder("t5", t)) - 2 for t in TARGETS]
    assert some.tokens["next_pos"].tolist() == at
    assert [some.positions(r, side="dec").tolist() for r in range(4)] == [[p] for p in at]
    assert some.positions(0, side="enc").tolist() == whole.positions(0, side="enc").tolist()
    for name, axes in {name: whole.array(name).spec.axes for name in whole.arrays()}.items():
        full, kept = np.asarray(whole.to_xarray(name)), np.asarray(some.to_xarray(name))
        chosen = [a for a in ("position", "query") if a in axes and name.startswith("dec_")]
        for row in range(4):
            expected = full[row]
            for axis in chosen:
                expected = np.take(expected, [at[row]], axis=axes.index(axis) - 1)
            np.testing.assert_array_equal(kept[row], expected, err_msg=name)
    np.testing.assert_array_equal(
        some.gather("dec_hidden", layer=1, position="next"), [whole.hidden(r, layer=1)[at[r]] for r in range(4)]
    )
    with pytest.raises(SelectionError, match="is not kept"):
        some.gather("dec_hidden", layer=1, position=0)
    np.testing.assert_array_equal(
        some.gather("enc_hidden", layer=1, position="last"),
        [whole.hidden(r, side="enc", layer=1)[len(ids_of(TEXTS[r])) - 1] for r in range(4)],
    )
