"""The table of stages: what runs have had since format 1.0 follows from it, name by name and axis by axis."""

import re
from pathlib import Path

import pytest

import decision_traces
from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.format.stages import CAPTURES, CHECKED, HALVES, STAGES, STREAM, further_conventions

# On the decoder of an encoder-decoder: 5 layers of which 1 and 3 have attention, 0 and 4 an MLP; head 1 alone.
DIMS = Dims(
    9, 5, 4, 2, 8, 32, 7, d_value=6, d_mlp=48, n_source=11, vocab_size=50, attention_layers=(1, 3), mlp_layers=(0, 4),
    heads=(1,), positions="next",
)  # fmt: skip
FIRST_ARRAYS = {
    "dec_self_attn": ("dec_self_attn.zarr/attn", (9, 2, 1, 1, 7)),
    "dec_self_q": ("dec_self_qkv.zarr/q", (9, 2, 1, 1, 8)),
    "dec_self_k": ("dec_self_qkv.zarr/k", (9, 2, 1, 1, 8)),
    "dec_self_v": ("dec_self_qkv.zarr/v", (9, 2, 1, 1, 6)),
    "dec_cross_attn": ("dec_cross_attn.zarr/attn", (9, 5, 1, 1, 11)),
    "dec_cross_q": ("dec_cross_qkv.zarr/q", (9, 5, 1, 1, 8)),
    "dec_cross_k": ("dec_cross_qkv.zarr/k", (9, 5, 1, 11, 8)),
    "dec_cross_v": ("dec_cross_qkv.zarr/v", (9, 5, 1, 11, 6)),
    "dec_hidden": ("dec_hidden.zarr/h", (9, 6, 1, 32)),
    "dec_res_embed": ("dec_res_embed.zarr/x", (9, 1, 32)),
    "dec_res_pre_attn": ("dec_res_pre_attn.zarr/x", (9, 5, 1, 32)),
    "dec_res_post_attn": ("dec_res_post_attn.zarr/x", (9, 2, 1, 32)),
    "dec_res_post_cross": ("dec_res_post_cross.zarr/x", (9, 5, 1, 32)),
    "dec_res_post_mlp": ("dec_res_post_mlp.zarr/x", (9, 5, 1, 32)),
    "dec_attn_out": ("dec_attn_out.zarr/x", (9, 2, 1, 32)),
    "dec_mlp_out": ("dec_mlp_out.zarr/x", (9, 2, 1, 32)),
    "dec_head_out": ("dec_head_out.zarr/x", (9, 2, 1, 1, 6)),
    "dec_mlp_act": ("dec_mlp_act.zarr/x", (9, 2, 1, 48)),
    "dec_cross_attn_out": ("dec_cross_attn_out.zarr/x", (9, 5, 1, 32)),
    "dec_cross_head_out": ("dec_cross_head_out.zarr/x", (9, 5, 1, 1, 6)),
    "dec_logits": ("dec_logits.zarr/x", (9, 1, 50)),
}
FIRST_CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits")
# Modules that are about one very stage: how it is found, how it is checked, how it is read by name.
ABOUT = {
    "format/stages.py", "model/structure.py", "model/discovery/probe.py", "tracing/self_check/stream.py",
    "tracing/self_check/certificate.py", "tracing/self_check/router.py", "model/discovery/router.py",
    "store/reading/trace_store.py", "tracing/session.py",
}  # fmt: skip


def test_arrays_have_the_names_places_and_shapes_they_always_had() -> None:
    made = {s.name: (s.path, DIMS.shape(s)) for s in arrays_for("dec", FIRST_CAPTURES)}
    assert made == FIRST_ARRAYS and list(made) == list(FIRST_ARRAYS)
    choices = [s.name for s in arrays_for("enc_mc", ("attn", "qkv", "resid", "logits"))]
    assert choices == [
        "enc_mc_attn", "enc_mc_q", "enc_mc_k", "enc_mc_v",
        "enc_mc_res_embed", "enc_mc_res_pre_attn", "enc_mc_res_post_attn", "enc_mc_res_post_mlp",
    ]  # fmt: skip


def test_an_example_in_memory_has_the_kept_heads_and_slots() -> None:
    planes = {"q": (1, 1, 8), "v": (1, 1, 6), "attn": (1, 1, 7), "cross_attn": (1, 1, 11), "cross_v": (1, 11, 6)}
    planes |= {"mlp_act": (1, 48), "final": (1, 32), "logits": (1, 50), "head_out": (1, 1, 6), "embed": (1, 32)}
    assert {name: DIMS.plane(name) for name in planes} == planes


def test_stages_stand_in_the_order_of_computation() -> None:
    order = sorted((stage for stage in STAGES.values() if not stage.made_of), key=lambda stage: stage.order)
    said = [stage.name for stage in order if stage.capture in (*FIRST_CAPTURES, None)]
    assert " ".join(said) == (
        "embed q k v attn head_out attn_out post_attn cross_q cross_k cross_v cross_attn cross_head_out cross_attn_out "
        "post_cross mlp_act mlp_out post_mlp final logits"
    )
    assert len({stage.order for stage in order}) == len(order)
    assert STREAM == ("embed", "post_mlp", "final")
    assert HALVES == ("post_attn", "attn_out", "post_cross", "cross_attn_out", "mlp_out")
    assert CHECKED[:9] == (*STREAM, *HALVES, "mlp_act")


def test_conventions_are_told_of_what_a_run_holds() -> None:
    assert list(further_conventions({"logits", "hidden", "cross_attn", "post_cross", "attn_out"})) == [
        "attn_out", "logits", "post_cross", "cross_attn",
    ]  # fmt: skip
    assert not further_conventions({"hidden", "q", "attn"})


@pytest.mark.parametrize("stage", ["mlp_act", "cross_head_out", "router"])
def test_a_stage_is_named_only_where_it_is_found_checked_and_read(stage: str) -> None:
    package, word = Path(decision_traces.__file__).parent, re.compile(rf"\b({stage}|{stage.upper()})\b")
    named = {f.relative_to(package).as_posix() for f in package.rglob("*.py") if word.search(f.read_text("utf-8"))}
    assert named <= ABOUT, f"{stage} is named in {sorted(named - ABOUT)}"


def test_every_capture_word_adds_an_array() -> None:
    assert set(CAPTURES) == {stage.capture for stage in STAGES.values() if stage.capture}
