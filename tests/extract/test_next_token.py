"""What workflow A promises besides the numbers: tables, limits, refusals, resuming, nothing harmed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from support.models import byte_tokenizer, tiny_decoder
from transformers import AutoModelForCausalLM

from decision_traces import TraceStore
from decision_traces.errors import (
    CaptureError,
    DataError,
    DiskSpaceError,
    Interrupted,
    ModelError,
    NonFiniteError,
    OutOfMemory,
    RunError,
    RunExistsError,
    TraceError,
    UnsupportedArchitecture,
    UsageError,
)
from decision_traces.extract import engine
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.format.columns import TOKEN_COLUMNS
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.tasks.next_token import NEXT_TOKEN_COLUMNS

LINES = [f"Line {i} has {'many ' * (i % 7)}words." for i in range(23)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def config(tiny_folder, lines: Path, tmp_path: Path):
    def make(**options) -> NextTokenConfig:
        settings = {"model_path": tiny_folder("gpt2"), "text_file": lines, "out_dir": tmp_path / "run", **options}
        return NextTokenConfig(model="tiny", **settings)

    return make


def test_tables_have_the_columns_of_the_schema_in_order(config) -> None:
    run = extract_next_token(config())
    names = pq.read_schema(run / "tokens.parquet").names
    assert names == [c.name for c in (*TOKEN_COLUMNS, *NEXT_TOKEN_COLUMNS) if c.name != "token_type_ids"]
    tokens = TraceStore(run).tokens
    assert tokens["text"].tolist() == LINES
    assert tokens["example_id"].is_unique
    assert tokens["next_true_token"].tolist() == ["."] * len(LINES)


def test_all_positions_hold_what_a_longer_and_longer_text_would_predict(config, tiny_folder) -> None:
    run = extract_next_token(config(all_positions=True, limit=3, capture=("hidden",)))
    table = pd.read_parquet(run / "token_outcomes.parquet")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"), dtype=torch.float32)
    ids = byte_tokenizer()(LINES[2])["input_ids"]
    mine = table[table["row"] == 2]
    assert mine["pos"].tolist() == list(range(len(ids) - 1))
    assert mine["true_id"].tolist() == ids[1:]
    for pos in (0, 5, len(ids) - 2):
        with torch.no_grad():
            probs = torch.softmax(model(torch.tensor([ids[: pos + 1]])).logits[0, -1].double(), -1).numpy()
        np.testing.assert_allclose(mine["true_prob"].iloc[pos], probs[ids[pos + 1]], atol=1e-5)
        assert mine["pred_id"].iloc[pos] == probs.argmax()
    last = table.groupby("row").last()
    tokens = TraceStore(run).tokens
    np.testing.assert_array_equal(last["pred_id"], tokens["next_pred_id"])
    np.testing.assert_array_equal(last["true_prob"], tokens["next_true_prob"])


@pytest.mark.parametrize("all_positions", [False, True])
def test_what_comes_after_the_text_is_an_outcome_too(config, tiny_folder, tmp_path: Path, all_positions: bool) -> None:
    texts = ["The capital of France is", "x", "longer, so that rows are padded beside it"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    store = TraceStore(extract_next_token(config(text_file=tmp_path / "prompts.txt", all_positions=all_positions)))
    assert not failures(validate_run(store.run_dir))
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"), dtype=torch.float32)
    assert store.tokens["next_pos"].tolist() == [22, -1, 39]
    for row, text in enumerate(texts):
        ids, kept = byte_tokenizer()(text)["input_ids"], store.tokens.iloc[row]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        probs = torch.softmax(logits, -1).numpy()
        best = np.argsort(-probs)
        assert (kept["after_pos"], kept["after_pred_id"]) == (len(ids) - 1, best[0])
        assert kept["after_pred_token"] == byte_tokenizer().decode([best[0]])
        assert kept["after_topk_ids"].tolist() == best[:10].tolist()
        np.testing.assert_allclose(kept["after_topk_probs"], probs[best[:10]], rtol=1e-4)
        np.testing.assert_allclose(kept["after_pred_prob"], probs[best[0]], rtol=1e-4)
        np.testing.assert_allclose(kept["after_entropy"], -(probs * np.log(probs)).sum(), rtol=1e-4)
        gap = float(logits[best[0]] - logits[best[1]])
        np.testing.assert_allclose(kept["after_margin"], gap, rtol=1e-3, atol=1e-5)


def test_example_ids_do_not_depend_on_the_limit(config, tmp_path: Path) -> None:
    few = TraceStore(extract_next_token(config(limit=2, out_dir=tmp_path / "few"))).tokens
    all_ = TraceStore(extract_next_token(config(out_dir=tmp_path / "all"))).tokens
    assert few["example_id"].tolist() == all_["example_id"].tolist()[:2]


def test_a_number_for_max_seq_len_is_t_and_auto_fits_the_longest(config, tmp_path: Path) -> None:
    assert TraceStore(extract_next_token(config(max_seq_len=90, out_dir=tmp_path / "a"))).T == 90
    longest = max(len(line) for line in LINES)
    assert longest == TraceStore(extract_next_token(config(out_dir=tmp_path / "b"))).T
    cut = TraceStore(extract_next_token(config(max_seq_len=10, out_dir=tmp_path / "c")))
    assert cut.meta["n_truncated"] == len(LINES) and cut.tokens["truncated"].all()


def test_the_seed_of_meta_is_there(config) -> None:
    meta = json.loads((extract_next_token(config(limit=2)) / "meta.json").read_text())
    wanted = "run_id model arch objective dataset split n_examples n_choices max_seq_len num_layers num_heads head_dim"
    assert set(wanted.split()) | {"dtype", "capture", "time"} <= meta.keys()
    assert (meta["arch"], meta["n_examples"], meta["num_layers"], meta["num_heads"]) == ("dec", 2, 3, 4)
    assert meta["certificate"]["passed"] is True


@pytest.mark.parametrize("capture", [(), ("attn",), ("qkv",), ("hidden",), ("resid",), ("hidden", "qkv")])
def test_any_subset_of_captures(capture: tuple, config) -> None:
    store = TraceStore(extract_next_token(config(capture=capture, limit=4)))
    by = {"attn": 1, "qkv": 3, "hidden": 1, "resid": 4}
    assert len(store.arrays()) == sum(by[c] for c in capture)


def test_identical_tensors_are_one_file(config) -> None:
    run = extract_next_token(config())
    shard = "c/0/1/0/0"
    inodes = {(run / name / shard).stat().st_ino for name in ("dec_hidden.zarr/h", "dec_res_pre_attn.zarr/x")} | {
        (run / "dec_res_post_mlp.zarr/x/c/0/0/0/0").stat().st_ino
    }
    assert len(inodes) == 1


def test_what_a_longer_batch_left_in_the_buffers_is_not_stored(config, blocks_of) -> None:
    blocks_of(5)
    run = extract_next_token(config(batch_size=2, max_seq_len=90, capture=("attn", "qkv", "hidden", "resid")))
    store = TraceStore(run)
    assert store.meta["block_rows"] == 5
    for row in range(len(LINES)):
        n = store.n_tokens(row)
        assert not store.hidden(row)[:, n:].any()
        assert not store.qkv(row, which="k")[:, :, n:].any()
        assert not store.attn(row)[..., n:, :].any() and not store.attn(row)[..., n:].any()


# -- refusals -----------------------------------------------------------------------------------------------


def _broken_model(folder: Path, change) -> Path:
    model = tiny_decoder("gpt2")
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_float16_overflow_stops_with_the_place_the_value_and_the_advice(config, tmp_path: Path) -> None:
    folder = _broken_model(tmp_path / "big", lambda m: m.transformer.h[1].mlp.c_proj.bias.fill_(90_000.0))
    with pytest.raises(NonFiniteError, match=r"post_mlp of layer 1 reaches 90,.*float16.*--dtype float32"):
        extract_next_token(config(model_path=folder))
    assert not list(tmp_path.glob("*run*"))
    store = TraceStore(extract_next_token(config(model_path=folder, dtype="float32")))
    assert store.meta["arrays"]["dec_res_post_mlp"]["max_abs"] > 89_000


def test_nan_in_the_weights_stops(config, tmp_path: Path) -> None:
    folder = _broken_model(tmp_path / "nan", lambda m: m.transformer.h[2].ln_1.weight.fill_(float("nan")))
    with pytest.raises(NonFiniteError, match="NaN in q of layer 2"):
        extract_next_token(config(model_path=folder))
    assert not list(tmp_path.glob("*run*"))


def _refused(config, error: type[TraceError], match: str, **options) -> None:
    with pytest.raises(error, match=match):
        extract_next_token(config(**options))


def test_bad_input_is_one_clear_error(config, tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DECISION_TRACES_DATA", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    no_weights = tmp_path / "no_weights"
    shutil.copytree(tiny_folder("gpt2"), no_weights)
    (no_weights / "model.safetensors").unlink()
    wrong_column = tmp_path / "wrong.jsonl"
    wrong_column.write_text('{"sentence": "x"}\n')
    _refused(config, ModelError, "there is no such folder", model_path=tmp_path / "nowhere")
    _refused(config, ModelError, "holds no model that can be loaded", model_path=empty)
    _refused(config, ModelError, r"holds no model that can be loaded.*config\.json", model_path=no_weights)
    _refused(config, DataError, "needs a column named text; it has: sentence", text_file=wrong_column)
    _refused(config, DataError, "no such file", text_file=tmp_path / "none.txt")
    _refused(config, DataError, r"expected one of \.txt", text_file=tmp_path / "none.pdf")
    _refused(config, UsageError, "--limit 0: needs at least 1", limit=0)
    _refused(config, UsageError, "--seed -1: needs a whole number from 0", seed=-1)
    _refused(config, UsageError, "--max_seq_len 500: .* built for 96 tokens", max_seq_len=500)
    _refused(config, UsageError, "--split dev: .*train, validation, test", text_file=None, split="dev")
    _refused(config, DataError, "--data_dir, or set", text_file=None)
    _refused(config, DataError, "no train split of wikitext2", text_file=None, split="train", data_dir=empty)
    _refused(config, UsageError, "--next_topk 0", next_topk=0)
    _refused(config, ModelError, "--gguf_file x.gguf: not in .*GGUF files there: none", gguf_file="x.gguf")
    _refused(config, UsageError, "--device warp9", device="warp9")
    assert not list(tmp_path.glob("*run*"))


def test_an_unknown_model_without_network_is_said_at_once(config) -> None:
    with pytest.raises(ModelError, match=r"--model gpt2-none: not to be had from the Hugging Face hub.*--model_path"):
        extract_next_token(NextTokenConfig(model="gpt2-none", text_file=config().text_file))


def test_models_of_another_kind_are_refused(config, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 258}
    encoder = BertModel(BertConfig(**sizes, intermediate_size=48))
    opt = OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=16))
    for name, model in (("encoder", encoder), ("opt", opt)):
        model.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    _refused(
        config, ModelError, "is not a decoder: model type 'bert', built as BertModel", model_path=tmp_path / "encoder"
    )
    _refused(config, UnsupportedArchitecture, "OPTForCausalLM is not understood", model_path=tmp_path / "opt")


def test_an_existing_run_is_replaced_only_on_request_and_only_when_the_new_one_is_complete(
    config, tmp_path: Path
) -> None:
    run = extract_next_token(config(limit=2))
    _refused(config, RunExistsError, "already holds a run.*--overwrite", limit=3)
    broken = _broken_model(tmp_path / "nan", lambda m: m.transformer.h[2].ln_1.weight.fill_(float("nan")))
    _refused(config, NonFiniteError, "NaN", model_path=broken, overwrite=True)
    assert TraceStore(run).n == 2
    assert TraceStore(extract_next_token(config(limit=3, overwrite=True))).n == 3


def test_a_folder_that_is_no_run_is_never_touched(config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    _refused(config, RunExistsError, "is not a run folder", overwrite=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_a_run_that_does_not_fit_is_refused_before_the_first_forward_pass(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decision_traces.extract import run

    monkeypatch.setattr(run, "free_bytes", lambda _folder: 1000)
    _refused(config, DiskSpaceError, r"may take .* GB and .* has 0.00 GB free.*--out_dir")
    assert not list(tmp_path.glob("*run*"))


def test_a_site_that_does_not_fire_is_an_error_not_zeros(config, monkeypatch: pytest.MonkeyPatch) -> None:
    from decision_traces.tracing.recorder import Recorder

    attach = Recorder._attach

    def drop_one(self: Recorder):
        removers = list(attach(self))
        removers[-1]()  # one hook is lost
        return iter(removers)

    monkeypatch.setattr(Recorder, "_attach", drop_one)
    _refused(config, CaptureError, "fired 0 times in one forward pass")


def test_nan_after_the_last_layer_stops_even_without_captures(config, tmp_path: Path) -> None:
    folder = _broken_model(tmp_path / "nan", lambda m: m.transformer.ln_f.weight.fill_(float("nan")))
    _refused(config, NonFiniteError, "NaN in final", model_path=folder, capture=())


def test_a_full_memory_says_what_uses_less(config, tmp_path: Path, monkeypatch) -> None:
    def fail(*_args) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(engine._Pipeline, "_forward", fail)
    _refused(config, OutOfMemory, r"Tried to allocate 2 GiB.*--max_seq_len, --batch_size.*nothing is left behind")
    assert not list(tmp_path.glob("*run*"))


def test_a_memory_too_small_for_the_model_is_a_sentence(config, tmp_path: Path, monkeypatch) -> None:
    def fail(*_args, **_options) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("decision_traces.model.load._load_weights", fail)
    _refused(config, OutOfMemory, r"you tried to allocate 9 bytes.*Nothing was written")
    assert not list(tmp_path.glob("*run*"))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 64, b""])
def test_broken_weights_are_one_sentence(content: bytes, config, tiny_folder, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder("gpt2"), folder)
    (folder / "model.safetensors").write_bytes(content)
    _refused(config, ModelError, "holds no model that can be loaded", model_path=folder)


def test_the_meta_says_how_to_do_it_again(config, tiny_folder) -> None:
    meta = TraceStore(extract_next_token(config(limit=3, next_topk=4))).meta
    assert meta["model"] == "tiny" and meta["model_path"] == str(tiny_folder("gpt2"))
    assert meta["capture"] == ["hidden", "resid"]
    wanted = {"limit": 3, "next_topk": 4, "batch_size": 64, "gguf_file": None}
    assert wanted.items() <= meta["settings"].items()


# -- stopping and going on ----------------------------------------------------------------------------------


def test_ctrl_c_says_what_is_left_and_resume_ends_the_same(config, tmp_path: Path, monkeypatch, blocks_of) -> None:
    blocks_of(6)
    options = {"max_seq_len": 90, "capture": ("attn", "qkv", "hidden", "resid"), "all_positions": True}
    whole = TraceStore(extract_next_token(config(out_dir=tmp_path / "whole", **options)))
    compute, calls = engine._Pipeline.block, []

    def stop_in_the_third(self, *args) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Pipeline, "block", stop_in_the_third)
        with pytest.raises(Interrupted, match=r"12 of 23 examples are kept in .*\.run\.partial.*--resume"):
            extract_next_token(config(**options))
    assert not (tmp_path / "run").exists()
    _refused(config, RunExistsError, "unfinished run", **options)
    _refused(config, RunError, "begun with other settings: .*dtype was 'float16', is 'float32'",
             **{**options, "resume": True, "dtype": "float32"})  # fmt: skip
    resumed = TraceStore(extract_next_token(config(resume=True, **options)))
    for name in whole.arrays():
        np.testing.assert_array_equal(np.asarray(resumed.to_xarray(name)), np.asarray(whole.to_xarray(name)))
    pd.testing.assert_frame_equal(resumed.tokens, whole.tokens)
    for table in ("tokens.parquet", "token_outcomes.parquet"):
        assert pq.read_table(resumed.run_dir / table).equals(pq.read_table(whole.run_dir / table))
    assert not (tmp_path / ".run.partial").exists()


def test_ctrl_c_before_the_first_block_leaves_nothing(config, tmp_path: Path, monkeypatch) -> None:
    def stop(*_args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._Pipeline, "block", stop)
    _refused(config, Interrupted, "nothing is left behind")
    assert not list(tmp_path.glob("*run*"))
    _refused(config, RunError, "--resume: there is no unfinished run", resume=True)


def test_half_a_file_of_the_last_block_does_not_stop_a_resume(config, tmp_path: Path, monkeypatch, blocks_of) -> None:
    blocks_of(6)
    options = {"max_seq_len": 90}
    whole = TraceStore(extract_next_token(config(out_dir=tmp_path / "whole", **options)))
    assert len(LINES) % whole.meta["block_rows"] != 0
    last = -(-len(LINES) // whole.meta["block_rows"]) - 1

    def stop(self, *_args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("decision_traces.extract.run._extract_and_commit", stop)
        patch.setattr("decision_traces.extract.run._what_is_left", lambda *_: "")
        with pytest.raises(Interrupted):
            extract_next_token(config(**options))
    planted = tmp_path / ".run.partial" / f"dec_hidden.zarr/h/c/{last}/0/0/0"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"half a shard")
    with (tmp_path / ".run.partial" / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"block": 0, "files": {"caf\xc3')  # a line that was torn by a crash
    (tmp_path / ".run.partial" / ".meta.json.partial").write_text("{")
    resumed = TraceStore(extract_next_token(config(resume=True, **options)))
    for name in whole.arrays():
        np.testing.assert_array_equal(np.asarray(resumed.to_xarray(name)), np.asarray(whole.to_xarray(name)))
    assert failures(validate_run(resumed.run_dir)) == []


def test_a_commit_interrupted_after_the_meta_needs_only_its_name(config, tmp_path: Path, monkeypatch) -> None:
    from decision_traces.store.writing.writer import RunWriter

    def stop(_self: RunWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "finish", stop)
        _refused(config, Interrupted, "--resume goes on from there")
    assert not (tmp_path / "run").exists()
    _refused(config, RunError, "begun with other settings: .*dtype", resume=True, dtype="float32")
    run = extract_next_token(config(resume=True))
    assert TraceStore(run).n == len(LINES)
    assert sorted(p.name for p in run.iterdir() if p.is_file()) == ["manifest.json", "meta.json", "tokens.parquet"]


# -- the folder for other readers ---------------------------------------------------------------------------


def test_every_array_opens_alone_in_zarr_and_xarray(config) -> None:
    import xarray
    import zarr

    run = extract_next_token(config(capture=("attn", "qkv", "hidden", "resid")))
    store = TraceStore(run)
    spec = {"dec_hidden": ("dec_hidden.zarr", "h"), "dec_self_k": ("dec_self_qkv.zarr", "k")}
    for name, (group, key) in spec.items():
        expected = store.gather(name, position=2)
        plain_zarr = zarr.open_group(run / group, mode="r")[key][:]
        np.testing.assert_array_equal(plain_zarr.take(2, axis=-2), expected)
        opened = xarray.open_zarr(run / group, chunks=None)[key]  # without a warning: here it would be an error
        assert opened.dims == store.to_xarray(name).dims
        np.testing.assert_array_equal(opened.isel(position=2).to_numpy(), expected)
