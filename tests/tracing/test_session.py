"""Reads and writes against plain torch hooks that do the same by hand; what is refused; what stays behind."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoder_decoders import tiny_encoder_decoder
from support.encoders import tiny_masked_encoder
from support.models import tiny_decoder
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from decision_traces.errors import SelectionError, UsageError, WriteError
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.structure import HookPoint
from decision_traces.tracing import session as session_module
from decision_traces.tracing.edits import Edit
from decision_traces.tracing.session import Session

IDS = torch.tensor([[5, 90, 33, 7, 61, 12, 40], [3, 77, 21, 9, 50, 8, 2]])
BATCH = {"input_ids": IDS}
HEADS = 4


def _session(family: str, **overrides: Any) -> Session:
    model = tiny_decoder(family, attn_implementation="eager", **overrides)
    return Session(model, find_structure(model, 99))


@contextmanager
def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor], *, reads: bool = False) -> Iterator[None]:
    """Change what a module gives (or reads) by a hook of our own."""

    def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def on_input(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (change(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(on_input) if reads else module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def _plain(model: nn.Module, batch: Mapping[str, Any] = BATCH) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch, use_cache=False).logits
    return logits


def _assert_same(session: Session, write: Mapping[Any, Any], by_hand: Tensor, atol: float = 0.0) -> None:
    logits = session.run(BATCH, write=write).logits
    torch.testing.assert_close(logits, by_hand, rtol=0, atol=atol)
    assert float((logits - _plain(session.model)).abs().max()) > 1e-4


def _at(value: Tensor, rows: Any, positions: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    new = value.clone()
    new[rows, positions] = change(new[rows, positions])
    return new


# -- against hooks by hand -----------------------------------------------------------------------------------

MODULES = {"llama": ("model.layers.1.{}", "self_attn", "mlp"), "gpt2": ("transformer.h.1.{}", "attn", "mlp")}


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize(("stage", "which"), [("dec.attn_out", 1), ("dec.mlp_out", 2)])
def test_zeros_are_what_a_hook_on_the_module_writes(family: str, stage: str, which: int) -> None:
    session = _session(family)
    names = MODULES[family]
    with _hooked(session.model.get_submodule(names[0].format(names[which])), torch.zeros_like):
        by_hand = _plain(session.model)
    _assert_same(session, {(stage, 1): Edit.set(0.0)}, by_hand)


@pytest.mark.parametrize("family", MODULES)
def test_a_vector_added_to_the_state_behind_attention_is_one_added_to_what_attention_writes(family: str) -> None:
    session = _session(family)
    vector = torch.randn(session.structure.d_model, generator=torch.Generator().manual_seed(0))
    name, attention, _ = MODULES[family]
    with _hooked(session.model.get_submodule(name.format(attention)), lambda t: _at(t, 1, 2, lambda s: s + vector)):
        by_hand = _plain(session.model)
    _assert_same(session, {("dec.post_attn", 1): Edit.add(vector, rows=1, positions=2)}, by_hand, atol=1e-5)


@pytest.mark.parametrize(("family", "layer"), [("falcon", "transformer.h.0"), ("gpt_neox", "gpt_neox.layers.0")])
def test_the_input_of_a_parallel_block_is_written_for_attention_the_mlp_and_the_stream(family: str, layer: str) -> None:
    model = tiny_decoder(family)
    session = Session(model, find_structure(model, 99))
    with _hooked(model.get_submodule(layer), lambda t: _at(t, slice(None), 3, lambda s: 2 * s)):
        by_hand = _plain(model)
    _assert_same(session, {("dec.pre_attn", 1): Edit.scale(2.0, positions=3)}, by_hand)


@pytest.mark.parametrize(("family", "matrix"), [("llama", "self_attn.o_proj"), ("gpt2", "attn.c_proj")])
def test_one_head_at_one_position_of_one_row_is_a_slice_of_what_the_projection_reads(family: str, matrix: str) -> None:
    session = _session(family)

    def silent(joined: Tensor) -> Tensor:
        joined = joined.clone()
        joined.view(*joined.shape[:2], HEADS, -1)[1, 4, 2] = 0
        return joined

    with _hooked(session.model.get_submodule(MODULES[family][0].format(matrix)), silent, reads=True):
        by_hand = _plain(session.model)
    _assert_same(session, {("dec.head_out", 1): Edit.set(0.0, heads=2, positions=[4], rows=1)}, by_hand)


def test_probabilities_set_to_a_matrix_mix_the_values_as_by_hand() -> None:
    session = _session("llama")
    attention = session.model.get_submodule("model.layers.1.self_attn")
    given = torch.rand(2, HEADS, 7, 7, generator=torch.Generator().manual_seed(0)).tril()
    values: list[Tensor] = []
    handle = attention.v_proj.register_forward_hook(lambda _m, _a, out: values.append(out))
    _plain(session.model)
    handle.remove()
    by_kv_head = values[0].view(2, 7, -1, attention.head_dim).transpose(1, 2)
    mixed = given @ by_kv_head.repeat_interleave(HEADS // by_kv_head.shape[1], 1)
    with _hooked(attention.o_proj, lambda _: mixed.transpose(1, 2).reshape(2, 7, -1), reads=True):
        by_hand = _plain(session.model)
    _assert_same(session, {("dec.attn", 1): Edit.set(given)}, by_hand, atol=1e-5)
    one = session.run(BATCH, read=[("dec.head_out", 1)])[("dec.head_out", 1)]
    part = session.run(BATCH, read=[("dec.head_out", 1)], write={("dec.attn", 1): Edit.set(given[:, 3:], heads=[3])})
    assert torch.equal(part[("dec.head_out", 1)][:, :3], one[:, :3])
    torch.testing.assert_close(part[("dec.head_out", 1)][:, 3], mixed[:, 3])


def test_keys_and_values_of_one_group_are_columns_of_their_projections() -> None:
    session = _session("llama")
    attention = session.model.get_submodule("model.layers.1.self_attn")
    width = attention.head_dim

    def halved(columns: Tensor) -> Tensor:
        return torch.cat([columns[..., :width], columns[..., width:] / 2], -1)  # rotary embedding keeps a factor

    for matrix, stage in ((attention.k_proj, "dec.k"), (attention.v_proj, "dec.v")):
        assert matrix.out_features == 2 * width
        with _hooked(matrix, halved):
            by_hand = _plain(session.model)
        _assert_same(session, {(stage, 1): Edit.scale(0.5, heads=1)}, by_hand, atol=1e-6)


def test_queries_of_one_head_are_columns_of_their_projection() -> None:
    session = _session("gpt2")
    width = session.structure.d_model // HEADS

    def doubled(columns: Tensor) -> Tensor:
        new = columns.clone()
        new[:, 6, 2 * width : 3 * width] *= 2
        return new

    with _hooked(session.model.get_submodule("transformer.h.1.attn.c_attn"), doubled):
        by_hand = _plain(session.model)
    _assert_same(session, {("dec.q", 1): Edit.by(lambda q: 2 * q, heads=2, positions=6)}, by_hand, atol=1e-6)


def test_neurons_are_what_the_last_matrix_reads() -> None:
    session = _session("llama")

    def change(neurons: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(neurons[..., :5]), neurons[..., 5:]], -1)

    with _hooked(session.model.get_submodule("model.layers.1.mlp.down_proj"), change, reads=True):
        by_hand = _plain(session.model)
    _assert_same(session, {("dec.mlp_act", 1): change}, by_hand)


def test_each_row_has_positions_of_its_own_and_edits_follow_one_another() -> None:
    session = _session("gpt2")
    block = session.model.get_submodule("transformer.h.1")

    def change(state: Tensor) -> Tensor:
        state = _at(state, 0, 6, lambda s: s * 3)
        return _at(_at(state, 1, 4, lambda s: s * 3), 1, slice(None), lambda s: s + 1)

    with _hooked(block, change):
        by_hand = _plain(session.model)
    edits = [Edit.scale(3.0, positions=torch.tensor([[6], [4]])), Edit.add(1.0, rows=[1])]
    _assert_same(session, {("dec.post_mlp", 1): edits}, by_hand, atol=1e-5)


@pytest.mark.parametrize(("stage", "module"), [("dec.attn_out", "self_attn"), ("dec.mlp_out", "mlp")])
def test_a_factor_behind_a_module_is_taken_back(stage: str, module: str) -> None:
    model = tiny_decoder("granite", attn_implementation="eager")
    for layer in model.model.layers:
        layer.residual_multiplier = 0.22  # as trained ones have; y / 0.22 * 0.22 is not always y in bfloat16
    session = Session(model, find_structure(model, 99))
    given = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with _hooked(
        session.model.get_submodule(f"model.layers.1.{module}"),
        lambda t: _at(t, slice(None), 3, lambda _: given / 0.22),
    ):
        by_hand = _plain(session.model)
    _assert_same(session, {(stage, 1): Edit.set(given[:, None], positions=3)}, by_hand, atol=1e-6)
    model.to(torch.bfloat16)
    own = session.run(BATCH, read=[(stage, 1)])[(stage, 1)]
    assert torch.equal(session.run(BATCH, write={(stage, 1): Edit.set(own)}).logits, _plain(model))


# -- reading -------------------------------------------------------------------------------------------------


def test_shapes_types_and_what_was_written_is_read() -> None:
    session = _session("llama")
    sites = {
        ("dec.embed", 0): (2, 7, 32), ("dec.pre_attn", 1): (2, 7, 32), ("dec.q", 1): (2, 4, 7, 8),
        ("dec.k", 1): (2, 2, 7, 8), ("dec.attn", 1): (2, 4, 7, 7), ("dec.head_out", 1): (2, 4, 7, 8),
        ("dec.mlp_act", 1): (2, 7, 48), ("dec.logits", 0): (2, 7, 258),
    }  # fmt: skip
    found = session.run(BATCH, read=sites)
    assert {at: tuple(value.shape) for at, value in found.activations.items()} == sites
    assert torch.equal(found[("dec.logits", 0)], found.logits)
    written = session.run(BATCH, read=[("dec.post_attn", 1)], write={("dec.post_attn", 1): Edit.set(2.0)})
    assert bool((written[("dec.post_attn", 1)] == 2).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon", "gemma2", "bert", "t5"])
def test_in_half_precision_own_values_change_no_bit_and_another_texts_state_gives_its_logits(
    family: str, dtype: torch.dtype
) -> None:
    task = {"bert": "masked", "t5": "seq2seq"}.get(family, "causal")
    build = {"bert": tiny_masked_encoder, "t5": tiny_encoder_decoder}.get(family, tiny_decoder)
    model = build(family).to(dtype)
    session = Session(model, find_structure(model, 99, task))  # type: ignore[arg-type]
    more = {"decoder_input_ids": IDS[:1, :5]} if task == "seq2seq" else {}
    one, other = ({"input_ids": IDS[i : i + 1], **more} for i in (0, 1))
    side = "enc" if task != "causal" else "dec"
    sites = [
        (f"{side}.{stage}", 1)
        for stage in ("pre_attn", "post_attn", "attn_out", "mlp_out", "mlp_act", "head_out", "q", "k", "v")
        if session.refusal((f"{side}.{stage}", 1)) is None
    ]
    own, theirs = session.run(one, read=sites), session.run(other, read=sites)
    for at in sites:
        assert own[at].dtype == dtype
        assert torch.equal(session.run(one, write={at: Edit.set(own[at])}).logits, own.logits), at
    for at in sites[:2] if "post_attn" in sites[1][0] else sites[:1]:
        assert torch.equal(session.run(one, write={at: Edit.set(theirs[at])}).logits, theirs.logits), at


def test_gradients_flow_through_a_tensor_that_an_edit_adds() -> None:
    session = _session("llama")
    at = ("dec.attn_out", 1)

    def score(added: Tensor, *, gradients: bool) -> Tensor:
        return session.run(BATCH, write={at: Edit.add(added)}, gradients=gradients).logits[0, -1, 5]

    added = torch.zeros(32, requires_grad=True)
    score(added, gradients=True).backward()
    assert added.grad is not None
    step = torch.zeros(32)
    step[7] = 1e-2
    slope = (score(step, gradients=False) - score(-step, gradients=False)) / 2e-2
    torch.testing.assert_close(added.grad[7], slope, rtol=1e-2, atol=1e-4)
    assert not score(added, gradients=False).requires_grad


# -- what is refused -----------------------------------------------------------------------------------------

MASKED = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}


@pytest.mark.parametrize(
    ("at", "edit", "error", "message"),
    [
        (("dec.mlp_out", 3), Edit.set(0.0), WriteError, "dec.mlp_out of layer 3 cannot be written: it has layers 0 to"),
        (("dec.final", 1), Edit.set(0.0), WriteError, "it has layer 0 alone"),
        (("enc.mlp_out", 1), Edit.set(0.0), WriteError, "a site begins with dec. in this model"),
        (("dec.neurons", 1), Edit.set(0.0), WriteError, "there is no stage 'neurons'"),
        (("dec.cross_q", 1), Edit.set(0.0), WriteError, "layer 1 has no such stage"),
        (("dec.logits", 0), Edit.set(0.0), WriteError, "nothing that the model computes reads its logits"),
        (("dec.mlp_out", 1), Edit.set(0.0, heads=0), UsageError, "dec.mlp_out of layer 1 has no heads to choose from"),
        (("dec.q", 1), Edit.set(0.0, heads=4), SelectionError, "head 4 is asked for, and heads 0 to 3 are there"),
        (("dec.k", 1), Edit.set(0.0, heads=2), SelectionError, "head 2 is asked for, and heads 0 to 1 are there"),
        (("dec.mlp_out", 1), Edit.set(0.0, positions=7), SelectionError, "position 7 is asked for"),
        (("dec.mlp_out", 1), Edit.set(0.0, positions=-1), SelectionError, "position -1 is asked for"),
        (("dec.mlp_out", 1), Edit.set(0.0, rows=[2]), SelectionError, "row \\[2\\] is asked for, and rows 0 to 1"),
        (("dec.mlp_out", 1), Edit.set(0.0, rows=[]), SelectionError, "no row is chosen, so that nothing would be"),
        (("dec.mlp_out", 1), Edit.set(0.0, positions=5), SelectionError, "position 5 of row 1 is padding"),
        (("dec.mlp_out", 1), Edit.set(torch.zeros(31)), UsageError, "does not fit what it changes, \\(2, 7, 32\\)"),
        (("dec.mlp_out", 1), lambda t: t[:1], UsageError, "gives \\(1, 7, 32\\) in place of \\(2, 7, 32\\)"),
        (("dec.mlp_out", 1), Edit.set(0.0, positions=[[1]]), SelectionError, "given for 1 rows, and 2 are changed"),
    ],
)  # fmt: skip
def test_a_write_that_reaches_nothing_is_an_error_by_name(
    at: Any, edit: Any, error: type[Exception], message: str
) -> None:
    session = _session("llama")
    with pytest.raises(error, match=message):
        session.run(MASKED, write={at: edit})
    assert torch.equal(session.run(BATCH).logits, _plain(session.model))


def test_a_layer_that_the_model_leaves_out_is_an_error_by_name() -> None:
    session = _session("llama")
    session.model.config.num_hidden_layers = 2  # its forward goes over so many
    with pytest.raises(WriteError, match=r"dec\.q of layer 2 was written 0 times in one forward pass, not once"):
        session.run(BATCH, write={("dec.q", 2): Edit.set(0.0)})


@pytest.mark.parametrize("what", ["the weights", "several of its elements"])
def test_no_write_touches_the_weights_or_one_element_for_several(what: str) -> None:
    session = _session("gpt2")
    model, stack = session.model, session.structure.main
    table = model.transformer.wpe.weight
    block = model.transformer.h[1]
    block.look = nn.Identity()
    given = table[None, :7] if what == "the weights" else torch.zeros(1, 1, 32).expand(1, 7, 32)
    block.ln_1.register_forward_hook(lambda *_: block.look(given) is None or None)
    wrong = replace(stack.layers[1], mlp_out=HookPoint("transformer.h.1.look", "input", 0, 0))
    structure = session.structure.with_stack(replace(stack, layers=(stack.layers[0], wrong, *stack.layers[2:])))
    before = table.clone()
    with pytest.raises(WriteError, match=f"dec.mlp_out of layer 1 cannot .*: its tensor shares memory with {what}"):
        Session(model, structure).run({"input_ids": IDS[:1]}, write={("dec.mlp_out", 1): Edit.set(0.0)})
    assert torch.equal(table, before)


def test_what_is_not_there_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"dec\.cross_attn of layer 0 cannot be read: layer 0 has no such stage"):
        _session("llama").run(BATCH, read=[("dec.cross_attn", 0)])
    with pytest.raises(UsageError, match=r"A batch needs input_ids, and has ids\."):
        _session("llama").run({"ids": IDS})


# -- what stays behind ---------------------------------------------------------------------------------------


def _nothing_is_left(model: nn.Module, before: Any) -> bool:
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    modes = torch.overrides._get_current_function_mode_stack()
    return not hooks and not modes and AttentionInterface.get_interface is before


@pytest.mark.parametrize("at", [("dec.mlp_out", 1), ("dec.q", 1), ("dec.attn", 1)])
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_nothing_stays_behind_after_an_edit_raised(family: str, at: Any) -> None:
    before = AttentionInterface.get_interface
    model = tiny_decoder(family, attn_implementation="eager")
    session = Session(model, find_structure(model, 99))
    model.train()
    model.lm_head.eval()

    def fail(_: Tensor) -> Tensor:
        raise MemoryError("in the middle")

    with pytest.raises(MemoryError, match="in the middle"), session:
        assert not any(module.training for module in model.modules())
        session.run(BATCH, write={at: fail})
    assert _nothing_is_left(model, before)
    assert model.training and not model.lm_head.training
    assert torch.equal(session.run(BATCH).logits, _plain(model.eval()))


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_an_edit_may_run_the_model_itself_and_a_session_be_entered_again(family: str) -> None:
    model = tiny_decoder(family)
    session = Session(model, find_structure(model, 99))
    at = ("dec.head_out", 1)
    one, other = {"input_ids": IDS[:1]}, {"input_ids": IDS[1:]}

    def theirs(_: Tensor) -> Tensor:
        with session:
            return session.run(other, read=[at])[at]

    with session:
        inside = session.run(one, read=[at], write={at: theirs})
        donor = session.run(other, read=[at])[at]
        expected = session.run(one, write={at: Edit.set(donor)})
    assert torch.equal(inside[at], donor)
    assert torch.equal(inside.logits, expected.logits)


def test_the_example_of_the_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (indented,) = re.findall(r"\n\n((?:    .*\n)+)", session_module.__doc__ or "")
    code = "".join(line[4:] for line in indented.splitlines(keepends=True))
    assert f"```python\n{code}```" in (Path(__file__).parents[2] / "docs" / "structure.md").read_text(encoding="utf-8")
    known = {
        "Session": Session,
        "Edit": Edit,
        "find_structure": find_structure,
        "model": tiny_decoder("llama"),
        "ids": IDS,
    }
    exec(compile(code, "example", "exec"), known)
    assert re.fullmatch(r"torch\.Size\(\[2, 7, 32\]\) tensor\(0\.\d*[1-9]\d*\)\n", capsys.readouterr().out)


# -- what is no edit, site or batch --------------------------------------------------------------------------


STREAM = ("dec.post_mlp", 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ({STREAM: lambda _: None}, "gives a NoneType, and must give a tensor of real numbers"),
        ({STREAM: lambda v: v.numpy()}, "gives a ndarray, and must"),
        ({STREAM: lambda v: v.to("meta")}, "gives numbers on the meta device, and must"),
        ({STREAM: lambda v: v.to_sparse()}, r"gives a torch\.sparse_coo tensor of torch\.float32, and must"),
        ({STREAM: lambda v: v.to(torch.complex64)}, r"gives a torch\.strided tensor of torch\.complex64, and must"),
        ({STREAM: torch.zeros(32)}, r"is no edit: give Edit\.set"),
        ({STREAM: "x"}, "'x' is no edit"),
        ({STREAM: None}, "None is no edit"),
        ({("dec.post_mlp", "1"): Edit.scale(0)}, r"\('dec.post_mlp', '1'\) is no site: give pairs"),
        ({"dec.post_mlp": Edit.scale(0)}, "'dec.post_mlp' is no site"),
    ],
)
def test_what_is_no_edit_or_site(write: Any, message: str) -> None:
    model = tiny_decoder("llama")
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    session = Session(model, find_structure(model, model.config.vocab_size))
    with pytest.raises(UsageError, match=message):
        session.run(batch, write=write)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit.set("a"), "'a': an edit takes a number or a tensor"),  # type: ignore[arg-type]
        (lambda: Edit.add(1j), "takes a number or a tensor of real numbers"),  # type: ignore[arg-type]
        (lambda: Edit.scale("a"), "'a': an edit takes a number or a tensor"),  # type: ignore[arg-type]
        (lambda: Edit.scale(0, positions="all"), "positions='all': give whole numbers"),  # type: ignore[arg-type]
        (lambda: Edit.scale(0, positions=1.5), r"positions=1\.5: give whole numbers"),  # type: ignore[arg-type]
        (lambda: Edit.scale(0, positions=[True, False]), "positions=.*: give whole numbers"),
        (lambda: Edit.scale(0, positions=[[1], [1, 2]]), "positions=.*: give whole numbers"),
        (lambda: Edit.scale(0, rows=[[0]]), "rows=.*: give whole numbers, in 1 axes at most"),  # type: ignore[list-item]
    ],
)
def test_edits_of_what_are_no_numbers(make: Callable[[], Edit], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("ids", [[[1, 2]], torch.tensor([1, 2]), torch.zeros(0, 3, dtype=torch.long)])
def test_batches_of_another_form(ids: Any) -> None:
    model = tiny_decoder("llama")
    with pytest.raises(UsageError, match=r"input_ids are .*, and must be a tensor \(rows, positions\)"):
        Session(model, find_structure(model, model.config.vocab_size)).run({"input_ids": ids})


def test_a_pass_of_another_thread_is_neither_read_nor_written() -> None:
    model = tiny_decoder("llama")
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    expected = model(**batch).logits
    elsewhere: list[torch.Tensor] = []

    def change(now: torch.Tensor) -> torch.Tensor:
        other = threading.Thread(target=lambda: elsewhere.append(model(**batch).logits))
        other.start()
        other.join()
        return now * 0

    with Session(model, find_structure(model, model.config.vocab_size)) as session:
        written = session.run(batch, read=[("dec.final", 0)], write={("dec.post_mlp", 0): change})
    assert torch.equal(elsewhere[0], expected) and not torch.equal(written.logits, expected)
