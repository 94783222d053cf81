"""`extract` on a decoder is `nexttok`; flags that mean nothing for a model; where the targets come from."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.encoder_decoders import save_tiny_encoder_decoder
from support.encoders import save_tiny_masked_encoder

from decision_traces import TraceStore
from decision_traces.data import tinyworld
from decision_traces.errors import DataError, ModelError, UsageError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.format.columns import TOKEN_COLUMNS
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.tasks.next_token import NEXT_TOKEN_COLUMNS
from decision_traces.tasks.sequence_to_sequence import TARGET_COLUMNS

TEXTS = ["first text", "", "third text, which is longer"]
TARGETS = ["one", "two", "three, and more"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and targets, and a model of each kind."""
    folder = tmp_path_factory.mktemp("place")
    both = pd.DataFrame({"text": TEXTS, "target": TARGETS, "other": ["x", "y", "z"]})
    both.to_csv(folder / "both.csv", index=False)
    rows = both[["target"]].to_dict("records")
    (folder / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "targets.txt").write_text("\n".join(TARGETS) + "\n")
    (folder / "texts.txt").write_text("first text\n\nthird text, which is longer\n")
    save_tiny_encoder_decoder(folder / "t5", "t5")
    save_tiny_masked_encoder(folder / "bert", "bert")
    return folder


def pairs(place: Path, out: Path, **options) -> TraceStore:
    settings = {"model_path": place / "t5", "text_file": place / "both.csv", "capture": (), "out_dir": out, **options}
    return TraceStore(extract_texts(TextConfig(model="tiny", **settings)))


# -- decoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["auto", "causal"])
def test_a_decoder_gives_the_same_run_as_nexttok(task: str, place: Path, tiny_folder, tmp_path: Path) -> None:
    same = {
        "model": "tiny",
        "model_path": tiny_folder("llama"),
        "text_file": place / "both.csv",
        "capture": ("attn", "qkv", "hidden", "resid"),
        "all_positions": True,
    }
    one = TraceStore(extract_next_token(NextTokenConfig(**same, out_dir=tmp_path / "one")))
    other = TraceStore(extract_texts(TextConfig(**same, task=task, out_dir=tmp_path / "other")))
    assert one.arrays() == other.arrays() != {}
    for name in one.arrays():
        np.testing.assert_array_equal(np.asarray(one.to_xarray(name)), np.asarray(other.to_xarray(name)))
    for table in ("tokens.parquet", "token_outcomes.parquet"):
        assert pq.read_table(one.run_dir / table).equals(pq.read_table(other.run_dir / table))
    differ = {key for key in one.meta if one.meta[key] != other.meta[key]}
    assert differ <= {"run_id", "time", "timings", "settings", "digest", "bytes", "manifest_crc32c"}


def test_the_embedded_model_is_a_decoder(tmp_path: Path) -> None:
    store = TraceStore(
        extract_texts(
            TextConfig(model="demo", dataset="tinyworld", limit=3, capture=("hidden",), out_dir=tmp_path / "r")
        )
    )
    assert (store.arch, store.meta["objective"], store.n) == ("dec", "next_token", 3)


REFUSED = [
    ("llama", {"targets_file": Path("x.txt")}, "--targets_file: means nothing for a decoder."),
    ("llama", {"target_column": "t"}, "--target_column: means nothing for a decoder."),
    ("llama", {"dec_max_len": 5, "mask_prob": 0.5}, "--dec_max_len, --mask_prob: means nothing for a decoder."),
    ("t5", {"mask_prob": 0.0}, "--mask_prob: means nothing for an encoder-decoder."),
    ("bert", {"all_positions": True}, "--all_positions: means nothing for an encoder."),
    ("bert", {"target_column": "other"}, "--target_column: means nothing for an encoder."),
    ("bert", {"task": "encode", "mask_prob": 0.3}, "--mask_prob: means nothing for an encoder without"),
    ("bert", {"positions": "next"}, "--positions next: these runs have no one position of their prediction"),
    ("bert", {"mask_prob": 1.0}, "--mask_prob 1.0: needs a share from 0 to below 1."),
    ("t5", {"dec_max_len": 0}, "--dec_max_len 0: needs at least 1, or auto."),
    ("llama", {"next_topk": 0}, "--next_topk 0: needs at least 1."),
]


@pytest.mark.parametrize(("kind", "flags", "words"), REFUSED, ids=[f"{kind} {flags}" for kind, flags, _ in REFUSED])
def test_flags_that_mean_nothing_are_refused_with_a_sentence(
    kind: str, flags: dict, words: str, place: Path, tiny_folder, tmp_path: Path
) -> None:
    folder = tiny_folder("llama") if kind == "llama" else place / kind
    with pytest.raises(UsageError) as refusal:
        pairs(place, tmp_path / "run", model_path=folder, **flags)
    assert str(refusal.value).startswith(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "task", "words"),
    [
        ("llama", "masked", "is not an encoder with a masked-language-modelling head: model type 'llama'"),
        ("llama", "seq2seq", "is not an encoder-decoder: model type 'llama'"),
        ("bert", "causal", "is not a decoder: model type 'bert'"),
        ("bert", "seq2seq", "is not an encoder-decoder: model type 'bert'"),
        ("t5", "causal", "is an encoder-decoder"),
    ],
)
def test_a_task_that_the_model_is_not_for_is_refused(
    kind: str, task: str, words: str, place: Path, tiny_folder, tmp_path: Path
) -> None:
    folder = tiny_folder("llama") if kind == "llama" else place / kind
    with pytest.raises(ModelError, match=words):
        pairs(place, tmp_path / "run", model_path=folder, task=task)
    assert not list(tmp_path.iterdir())


# -- targets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["targets.txt", "targets.jsonl"])
def test_targets_come_from_a_file_row_by_row(name: str, place: Path, tmp_path: Path) -> None:
    store = pairs(place, tmp_path / "run", targets_file=place / name)
    assert store.tokens["text"].tolist() == TEXTS
    assert store.tokens["target_text"].tolist() == TARGETS
    assert store.tokens["dec_n_tokens"].tolist() == [2 + len(t) for t in TARGETS]


def test_rows_are_those_of_the_file_also_where_a_text_is_left_out(place: Path, tmp_path: Path) -> None:
    """An empty line of a .txt is no example, and its target is nobody's."""
    store = pairs(place, tmp_path / "run", text_file=place / "texts.txt", targets_file=place / "targets.txt")
    assert store.tokens["target_text"].tolist() == ["one", "three, and more"]


@pytest.mark.parametrize("name", ["both.csv"])
def test_targets_come_from_a_column_of_the_texts(name: str, place: Path, tmp_path: Path) -> None:
    store = pairs(place, tmp_path / "run", text_file=place / name, target_column="target", limit=2)
    assert store.tokens["target_text"].tolist() == TARGETS[:2]


def test_tables_have_the_columns_of_the_schema_in_order(place: Path, tmp_path: Path) -> None:
    store = pairs(place, tmp_path / "run", target_column="other")
    wanted = [c.name for c in (*TOKEN_COLUMNS, *TARGET_COLUMNS, *NEXT_TOKEN_COLUMNS) if c.name != "token_type_ids"]
    assert pq.read_schema(store.run_dir / "tokens.parquet").names == [*wanted, "target", "other"]
    assert (store.arch, store.meta["objective"], store.meta["task"]) == ("encdec", "target", "seq2seq")


@pytest.mark.parametrize("column", ["kind", "choices"])
def test_targets_come_from_the_fields_of_tinyworld(column: str, place: Path, tmp_path: Path) -> None:
    store = pairs(place, tmp_path / "run", text_file=None, dataset="tinyworld", target_column=column, limit=7)
    expected = [e.fields[column] for e in tinyworld.examples("validation", 7)]
    assert sum(value is None for value in expected) == (0 if column == "kind" else 6)
    told = [", ".join(v) if isinstance(v, list) else v or "" for v in expected]
    assert store.tokens["target_text"].tolist() == told
    assert store.tokens["kind"].tolist() == [e.fields["kind"] for e in tinyworld.examples("validation", 7)]
    assert not failures(validate_run(store.run_dir))


@pytest.fixture
def csqa(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "commonsenseqa"
    folder.mkdir(parents=True)
    choices = [{"label": label, "text": f"choice {label}"} for label in "ABCDE"]
    rows = [
        {
            "answerKey": key,
            "question": {"question_concept": concept, "choices": choices, "stem": f"Where is {concept}?"},
        }
        for key, concept in (("B", "bread"), ("E", "fish"))
    ]
    (folder / "dev_rand_split.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("answerKey", ["B", "E"]),
        ("choice_texts", ["choice A, choice B, choice C, choice D, choice E"] * 2),
    ],
)
def test_targets_come_from_the_fields_of_csqa(
    column: str, told: list[str], csqa: Path, place: Path, tmp_path: Path
) -> None:
    store = pairs(place, tmp_path / "run", text_file=None, dataset="csqa", data_dir=csqa, target_column=column)
    assert store.tokens["text"].tolist() == ["Where is bread?", "Where is fish?"]
    assert store.tokens["target_text"].tolist() == told


WRONG = [
    (DataError, {"targets_file": "short.txt"}, r"short\.txt has no target for row 2 \(both-all-000002-\w+\); it has 2"),
    (DataError, {"targets_file": "gap.txt"}, r"gap\.txt has no target for row 1 "),
    (DataError, {"targets_file": "texts.csv"}, "--targets_file .*needs a column named target; it has: text"),
    (DataError, {"targets_file": "none.txt"}, "--targets_file .*there is no such file"),
    (DataError, {"targets_file": "none.pdf"}, r"--targets_file .*expected one of \.txt"),
    (UsageError, {"targets_file": "targets.txt", "target_column": "other"}, "--targets_file and --target_column: give"),
    (DataError, {"target_column": "answer"}, "--target_column: .*both.csv: needs a column named answer; it has: text"),
    (UsageError, {"target_column": "target", "text_file": "texts.txt"}, r"--target_column target: .*has no columns"),
    (DataError, {"target_column": "answer", "text_file": None, "dataset": "tinyworld"},
     "--target_column answer: the data has no such column; it has: kind, question, choices, answerKey"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "flags", "words"), WRONG, ids=[str(w[1]) for w in WRONG])
def test_targets_that_are_not_there_are_one_clear_error(
    error: type[Exception], flags: dict, words: str, place: Path, tmp_path: Path
) -> None:
    (place / "short.txt").write_text("one\ntwo\n")
    (place / "gap.txt").write_text("one\n\nthree\n")
    (place / "texts.csv").write_text("text\nx\n")
    paths = {k: place / v if k in {"targets_file", "text_file"} and v else v for k, v in flags.items()}
    with pytest.raises(error, match=words):
        pairs(place, tmp_path / "run", **paths)
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_needs_the_same_targets(place: Path, tmp_path: Path, monkeypatch, blocks_of) -> None:
    from decision_traces.errors import Interrupted, RunError
    from decision_traces.extract import engine

    blocks_of(1)
    compute, calls = engine._Pipeline.block, []

    def stop_in_the_second(self, *args) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        compute(self, *args)

    options = {"capture": ("hidden",), "target_column": "target"}
    whole = pairs(place, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(engine._Pipeline, "block", stop_in_the_second)
        with pytest.raises(Interrupted):
            pairs(place, tmp_path / "run", **options)
    with pytest.raises(RunError, match="begun with other settings"):
        pairs(place, tmp_path / "run", resume=True, **{**options, "target_column": "other"})
    resumed = pairs(place, tmp_path / "run", resume=True, **options)
    for name in whole.arrays():
        np.testing.assert_array_equal(np.asarray(resumed.to_xarray(name)), np.asarray(whole.to_xarray(name)))
    pd.testing.assert_frame_equal(resumed.tokens, whole.tokens)
