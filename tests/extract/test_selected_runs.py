"""`--layers`, `--heads`, `--positions`: a selected run is the complete run's slice, by the model's own numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from decision_traces import TraceStore
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import Interrupted, RunError, SelectionError, UsageError
from decision_traces.extract import engine
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.long  # minutes; the same ways are taken in part by other tests

CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
LINES = ["The cat sat on the mat.", "a", "abcdef", "ab", "One more line of plain text, longer.", "six ab", "x" * 40]
AXES = {
    "self_attn": "layer head query key",
    "attn": "layer head query key",
    "self_q": "layer head position d",
    "self_k": "layer kv_head position d",
    "self_v": "layer kv_head position d",
    "q": "layer head position d",
    "k": "layer kv_head position d",
    "v": "layer kv_head position d",
    "hidden": "depth position d",
    "res_embed": "position d",
    **dict.fromkeys(("res_pre_attn", "res_post_attn", "res_post_mlp", "attn_out", "mlp_out"), "layer position d"),
    "head_out": "layer head position d",
    "mlp_act": "layer position d",
    "logits": "position vocab",
}
Kept = dict[str, Sequence[int]]


def sliced(whole: np.ndarray, axes: list[str], kept: Kept) -> np.ndarray:
    """Cut one example's array, (layer, ..), by numbers; a position beyond the text leaves its slot at the end empty."""
    for axis, name in enumerate(axes):
        if name in kept and name not in {"position", "query"}:
            whole = np.take(whole, kept[name], axis=axis)
    place = next(i for i, name in enumerate(axes) if name in {"position", "query"})
    if "position" not in kept:
        return whole
    there = np.take(whole, [p for p in kept["position"] if p < kept["n"][0]], axis=place)
    missing = len(kept["position"]) - there.shape[place]
    return np.pad(there, [(0, missing if i == place else 0) for i in range(there.ndim)])


def numbers(layers: Sequence[int] | None, heads: Sequence[int] | None, group: int) -> Kept:
    """What a choice of layers and heads means for each axis."""
    kept: Kept = {}
    if layers is not None:
        kept |= {"layer": layers, "depth": sorted({d for n in layers for d in (n, n + 1)})}
    if heads is not None:
        kept |= {"head": heads, "kv_head": sorted({h // group for h in heads})}
    return kept


def check_slices(whole: TraceStore, some: TraceStore, prefix: str, kept: Kept, at: Callable | None) -> None:
    """Compare every array, every example (and choice), bit for bit."""
    assert list(some.arrays()) == list(whole.arrays())
    for name in whole.arrays():
        full, part = np.asarray(whole.to_xarray(name)), np.asarray(some.to_xarray(name))
        axes, counts = AXES[name.removeprefix(prefix)].split(), np.asarray(whole.tokens["n_tokens"].tolist())
        for index in np.ndindex(counts.shape):
            n = int(counts[index])
            here = kept if at is None else {**kept, "position": at(index[0], n), "n": [n]}
            np.testing.assert_array_equal(part[index], sliced(full[index], axes, here), err_msg=f"{name} {index}")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture(scope="module")
def decoder(tiny_folder, texts: Path) -> Callable[..., TraceStore]:
    """A run of the tiny Llama: 3 layers, 4 query heads, 2 of keys and values."""

    def run(out: Path, **options) -> TraceStore:
        settings = {"capture": CAPTURES, "dtype": "float32", **options}
        config = NextTokenConfig(
            model="tiny", model_path=tiny_folder("llama"), text_file=texts, out_dir=out, **settings
        )
        return TraceStore(extract_next_token(config))

    return run


@pytest.fixture(scope="module")
def whole(decoder, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return decoder(tmp_path_factory.mktemp("whole") / "run")


CASES = [
    ({"layers": "0,2"}, [0, 2], None, None),
    ({"layers": "-1"}, [2], None, None),
    ({"layers": "1-2", "heads": "0"}, [1, 2], [0], None),
    ({"heads": "3,1"}, None, [1, 3], None),
    ({"positions": "next"}, None, None, lambda row, n: [n - 2] if n > 1 else [10_000]),
    ({"positions": "last"}, None, None, lambda row, n: [n - 1]),
    ({"layers": "0", "heads": "1,2", "positions": "5,0"}, [0], [1, 2], lambda row, n: [0, 5]),
]


@pytest.mark.parametrize(("flags", "layers", "heads", "at"), CASES, ids=[str(case[0]) for case in CASES])
def test_a_selected_decoder_run_is_the_slice_of_the_complete_one(
    flags: dict, layers, heads, at, decoder, whole: TraceStore, tmp_path: Path
) -> None:
    some = decoder(tmp_path / "run", **flags)
    check_slices(whole, some, "dec_", numbers(layers, heads, group=2), at)
    assert not failures(validate_run(some.run_dir))
    assert some.tokens.equals(whole.tokens)
    assert (some.L, some.H, some.T) == (3, 4, 40)


@pytest.mark.parametrize("word", ["attn", "qkv", "hidden", "head_out", "mlp_act", "logits"])
def test_a_capture_can_be_selected_alone(word: str, decoder, tmp_path: Path) -> None:
    one = {"capture": (word,), "limit": 5}
    whole, some = (
        decoder(tmp_path / "whole", **one),
        decoder(tmp_path / "some", **one, layers="1", heads="2", positions="2,3"),
    )
    check_slices(whole, some, "dec_", numbers([1], [2], group=2), lambda row, n: [2, 3])
    assert not failures(validate_run(some.run_dir))


@pytest.fixture(scope="module")
def few(decoder, tmp_path_factory: pytest.TempPathFactory) -> TraceStore:
    return decoder(tmp_path_factory.mktemp("few") / "run", layers="0,2", heads="1,3", positions="0,5")


def test_accessors_take_the_models_own_numbers(whole: TraceStore, few: TraceStore) -> None:
    for row, n in enumerate(len(line) for line in LINES):
        at = [p for p in (0, 5) if p < n]
        np.testing.assert_array_equal(few.hidden(row, layer=3, trim=True), whole.hidden(row, layer=3)[at])
        np.testing.assert_array_equal(few.resid(row, layer=-1, trim=True), whole.resid(row, layer=2)[at])
        np.testing.assert_array_equal(
            few.attn(row, layer=2, head=3, trim=True), whole.attn(row, layer=2, head=3)[at, :n]
        )
        np.testing.assert_array_equal(
            few.qkv(row, which="k", layer=0, head=1, trim=True), whole.qkv(row, which="k", layer=0, head=1)[at]
        )
        np.testing.assert_array_equal(few.head_out(row, layer=0, head=-1, trim=True), whole.head_out(row)[0, 3, at])
        np.testing.assert_array_equal(few.mlp_act(row, layer=2, trim=True), whole.mlp_act(row, layer=2)[at])
        np.testing.assert_array_equal(few.logits(row, trim=True), whole.logits(row)[at])
        assert few.positions(row).tolist() == [p if p < n else -1 for p in (0, 5)]


def test_gather_takes_the_models_own_numbers(whole: TraceStore, few: TraceStore) -> None:
    found = few.gather("dec_self_q", layer=2, head=1, position=5)
    for row, line in enumerate(LINES):
        if len(line) > 5:
            np.testing.assert_array_equal(found[row], whole.qkv(row, which="q", layer=2, head=1)[5])
        else:
            assert np.isnan(found[row]).all()


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda st: st.resid(0, layer=1), r"layer.* 1 .*0, 2"),
        (lambda st: st.attn(0, layer=0, head=2), r"head.* 2 .*1, 3"),
        (lambda st: st.gather("dec_hidden", layer=1, position=2), r"[Pp]osition 2 .*0, 5"),
        (lambda st: st.gather("dec_hidden", layer=1, position="last"), r"Position 22 of row 0 is not kept.*0, 5"),
    ],
)
def test_what_is_not_kept_is_an_error_that_says_what_is(ask, words: str, few: TraceStore) -> None:
    with pytest.raises(SelectionError, match=words):
        ask(few)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"layers": "7"}, "--layers 7: there is no 7; this model has layers 0 to 2"),
        ({"layers": "-4"}, "--layers -4: there is no -4"),
        ({"layers": "2-1"}, "--layers 2-1: names none"),
        ({"heads": "x"}, "--heads x: give all, or heads such as"),
        ({"heads": "4"}, "--heads 4: there is no 4; this model has heads 0 to 3"),
        ({"positions": "-1"}, "--positions -1: positions count from 0; the end of a text is `last`"),
        ({"positions": "40"}, "--positions 40: there are positions 0 to 39"),
        ({"positions": "first"}, "--positions first: give all, or positions"),
        ({"positions": ""}, "--positions : give all, or positions"),
    ],
)
def test_what_the_model_does_not_have_is_one_error_before_anything_is_written(
    flags: dict, words: str, decoder, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        decoder(tmp_path / "run", **flags)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_selected_run_ends_as_an_uninterrupted_one(
    decoder, tmp_path: Path, monkeypatch, blocks_of
) -> None:
    """Blocks of two rows, long and short texts by turns: no block sees what another left in its slots."""
    blocks_of(2)
    flags = {"layers": "1,2", "heads": "0,1", "positions": "0,5"}
    whole = decoder(tmp_path / "whole", **flags)
    compute, calls = engine._Pipeline.block, []

    def stop_in_the_third(self, *args) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(engine._Pipeline, "block", stop_in_the_third)
        with pytest.raises(Interrupted, match="--resume"):
            decoder(tmp_path / "run", **flags)
    with pytest.raises(RunError, match=r"begun with other settings: .*selection"):
        decoder(tmp_path / "run", **{**flags, "heads": "0,2", "resume": True})
    resumed = decoder(tmp_path / "run", **flags, resume=True)
    assert whole.meta["block_rows"] == 2
    for name in whole.arrays():
        np.testing.assert_array_equal(np.asarray(resumed.to_xarray(name)), np.asarray(whole.to_xarray(name)))
    assert not failures(validate_run(resumed.run_dir))


def test_small_blocks_change_nothing_of_a_selected_run(
    few: TraceStore, decoder, tmp_path: Path, blocks_of: Callable[[int], None]
) -> None:
    flags = {"layers": "0,2", "heads": "1,3", "positions": "0,5", "batch_size": 1}
    one = decoder(tmp_path / "one", **flags)
    blocks_of(2)
    other = decoder(tmp_path / "run", **flags)
    for name in few.arrays():
        a, b = (np.asarray(st.to_xarray(name)) for st in (other, one))
        np.testing.assert_array_equal(a, b)
        assert ((a != 0) == (np.asarray(few.to_xarray(name)) != 0)).mean() > 0.999, name


# -- answers and choices --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers() -> Callable[..., TraceStore]:
    """A run of the embedded model on questions."""

    def run(out: Path, **options) -> TraceStore:
        settings = {"capture": CAPTURES, "dtype": "float32", "limit": 4, "answers": "text", **options}
        config = AnswerConfig(model="demo", dataset="tinyworld", out_dir=out, **settings)
        return TraceStore(extract_answers(config))

    return run


def test_a_selected_answer_run_is_the_slice_of_the_complete_one(answers, tmp_path: Path) -> None:
    assert MODEL_DIR.is_dir()
    whole = answers(tmp_path / "whole")
    for word in ("next", "last"):
        some = answers(tmp_path / word, layers="0,-1", heads="1", positions=word)
        kept = numbers([0, whole.L - 1], [1], group=1)
        check_slices(whole, some, "dec_", kept, lambda row, n: [n - 1])
        assert not failures(validate_run(some.run_dir))
        at = some.gather("dec_hidden", layer=whole.L, position="next")
        np.testing.assert_array_equal(at, [whole.hidden(r, layer=whole.L, trim=True)[-1] for r in range(4)])
        assert some.tokens["choice_logits"].map(list).equals(whole.tokens["choice_logits"].map(list))


@pytest.fixture(scope="module")
def choices(tiny_encoder_folder) -> Callable[..., TraceStore]:
    """A run of the tiny BERT on questions with choices."""

    def run(out: Path, **options) -> TraceStore:
        settings = {"capture": CAPTURES[:-1], "dtype": "float32", "limit": 3, **options}
        config = MultipleChoiceConfig(
            model="tiny", model_path=tiny_encoder_folder("bert"), dataset="tinyworld", out_dir=out, **settings
        )
        return TraceStore(extract_multiple_choice(config))

    return run


@pytest.mark.parametrize(
    ("word", "at"), [("last", lambda row, n: [n - 1]), ("0,30", lambda row, n: [0, 30]), ("all", None)]
)
def test_a_selected_choice_run_is_the_slice_of_the_complete_one(word: str, at, choices, tmp_path: Path) -> None:
    whole, some = choices(tmp_path / "whole"), choices(tmp_path / "some", layers="1", heads="0,2", positions=word)
    check_slices(whole, some, "enc_mc_", numbers([1], [0, 2], group=1), at)
    assert not failures(validate_run(some.run_dir))
    np.testing.assert_array_equal(
        some.mcq_attn(1, 3, layer=1, head=2, trim=True)[0],
        whole.mcq_attn(1, 3, layer=1, head=2, trim=True)[-1 if word == "last" else 0],
    )
    with pytest.raises(SelectionError, match=r"layer.* 0 .*1"):
        some.mcq_resid(0, 0, layer=0)


def test_encoders_of_choices_have_no_position_of_their_prediction(choices, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--positions next: these runs have no one position of their prediction"):
        choices(tmp_path / "run", positions="next")
    assert not list(tmp_path.iterdir())
