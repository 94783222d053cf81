"""The matrix on mainstream classes, with literal verdicts; what is refused or has no attention; page and command."""

import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from decision_traces.model.discovery.dataflow import record_forward
from dev.architectures.__main__ import main
from dev.architectures.matrix import NO_ATTENTION, Verdict, check_class
from dev.architectures.overrides import NEEDS_MORE
from dev.architectures.report import counts, markdown
from dev.architectures.tiny import Kind, ModelClass, NoSdpa, build_tiny, model_classes, tiny_inputs

CLASSES = {(c.kind, c.model_type): c for c in model_classes()}
BOTH, EAGER = ("eager", "sdpa"), ("eager",)
MIXTURE = "not every MLP is one matrix behind hidden neurons of one width (a mixture of experts, say)"

# kind, model type: attention implementations, stages that are missing, whether post_attn is derived
MAINSTREAM: dict[tuple[Kind, str], tuple[tuple[str, ...], set[str], bool]] = {
    ("causal", "gpt2"): (BOTH, set(), False),
    ("causal", "llama"): (BOTH, set(), False),
    ("causal", "mistral"): (BOTH, set(), False),
    ("causal", "mixtral"): (BOTH, {"dec.mlp_act"}, False),
    ("causal", "qwen3"): (BOTH, set(), False),
    ("causal", "qwen3_next"): (BOTH, {"dec.mlp_act"}, False),
    ("causal", "gemma2"): (EAGER, set(), False),
    ("causal", "gemma4_text"): (BOTH, {"dec.mlp_out", "dec.mlp_act"}, False),
    ("causal", "opt"): (BOTH, set(), False),
    ("causal", "gpt_neox"): (BOTH, set(), True),
    ("causal", "bloom"): (EAGER, set(), False),
    ("causal", "falcon"): (BOTH, set(), True),
    ("causal", "gpt_oss"): (EAGER, {"dec.mlp_act"}, False),
    ("causal", "deepseek_v3"): (BOTH, {"dec.mlp_act"}, False),
    ("causal", "granite"): (BOTH, set(), False),
    ("causal", "cohere2"): (BOTH, set(), True),
    ("causal", "olmo2"): (BOTH, set(), False),
    ("causal", "jamba"): (BOTH, set(), False),
    ("causal", "bamba"): (BOTH, set(), False),
    ("masked", "bert"): (BOTH, set(), False),
    ("masked", "deberta-v2"): (EAGER, set(), False),
    ("masked", "modernbert"): (BOTH, set(), False),
    ("masked", "albert"): (BOTH, set(), False),
    ("multiple_choice", "xlnet"): (EAGER, set(), False),
    ("multiple_choice", "xlm"): (EAGER, set(), False),
    ("multiple_choice", "squeezebert"): (EAGER, {"enc.mlp_act"}, False),
    ("multiple_choice", "convbert"): (EAGER, {"enc.post_attn", "enc.attn_out"}, False),
    ("seq2seq", "t5"): (BOTH, set(), False),
    ("seq2seq", "bart"): (BOTH, set(), False),
    ("seq2seq", "prophetnet"): (EAGER, set(), False),
}

HYBRID = {
    "jamba": ("dec: 1 of 4 layers have attention",),
    "bamba": ("dec: 2 of 4 layers have attention",),
    "qwen3_next": ("dec: 2 of 4 layers have attention",),
}


@cache
def _verdict(kind: Kind, model_type: str) -> Verdict:
    return check_class(CLASSES[kind, model_type])


@pytest.mark.parametrize(
    ("kind", "model_type"),
    # One in two in every run of the tests; the matrix itself, and -m long, have all of them.
    [pytest.param(*which, marks=pytest.mark.long if i % 2 else ()) for i, which in enumerate(MAINSTREAM)],
)
def test_a_mainstream_class_is_traced_as_expected(kind: Kind, model_type: str) -> None:
    attention, missing, derived = MAINSTREAM[kind, model_type]
    verdict = _verdict(kind, model_type)
    assert verdict.hybrid == HYBRID.get(model_type, ())
    whole = not missing and not derived and model_type not in HYBRID
    assert verdict.status == ("supported" if whole else "partly"), (verdict.reason, verdict.missing)
    assert set(verdict.missing) == missing
    assert verdict.attention == attention
    assert verdict.derived is derived
    assert verdict.padded is (model_type != "convbert")


def test_a_mixture_of_experts_has_no_one_row_of_neurons() -> None:
    assert _verdict("causal", "gpt_oss").missing == {"dec.mlp_act": MIXTURE}


def test_a_class_that_reports_scores_as_attentions_says_that_they_were_not_compared() -> None:
    notes = _verdict("multiple_choice", "squeezebert").notes
    assert notes == ("attention: transformers reports no probabilities (scores, say) to compare with",)


def test_a_layer_whose_mixer_runs_beside_attention_claims_no_mlp() -> None:
    """Falcon-H1 adds attention and a state-space mixer in one step and its MLP in the next."""
    verdict = check_class(CLASSES["causal", "falcon_h1"])
    assert verdict.status == "partly"
    assert {"dec.mlp_out", "dec.mlp_act"} <= set(verdict.missing)


# -- what is not traced --------------------------------------------------------------------------------------

WITHOUT = [c for c in model_classes() if c.model_type in NO_ATTENTION]


def test_classes_without_attention_are_these() -> None:
    assert sorted({c.model_type for c in WITHOUT}) == ["falcon_mamba", "fnet", "mamba", "mamba2", "rwkv", "xlstm"]


@pytest.mark.parametrize("which", WITHOUT, ids=lambda c: f"{c.kind}-{c.model_type}")
def test_a_class_without_attention_shows_none_and_is_not_applicable(which: ModelClass) -> None:
    model = build_tiny(which)
    asked = {"use_cache": False} if which.kind == "causal" else {}
    assert record_forward(model, {**tiny_inputs(which, model, (6, 6)), **asked}).attention == []
    verdict = check_class(which)
    assert verdict.status == "not applicable"
    assert verdict.reason == f"it has no attention: {NO_ATTENTION[which.model_type]}"


def test_a_class_with_attention_shows_it() -> None:
    """So that the test above can fail: the same look at a class that has attention finds it."""
    which = CLASSES["causal", "llama"]
    model = build_tiny(which)
    assert len(record_forward(model, tiny_inputs(which, model, (6, 6))).attention) == 4


@pytest.mark.parametrize("model_type", NEEDS_MORE)
def test_a_class_that_needs_more_than_text_raises_on_text_alone(model_type: str) -> None:
    for which in (c for c in model_classes() if c.model_type == model_type):
        model = build_tiny(which)
        with torch.no_grad(), pytest.raises(ValueError):
            model(**tiny_inputs(which, model))
        verdict = check_class(which)
        assert verdict.status == "refused"
        assert verdict.reason == f"text alone is not enough: {NEEDS_MORE[model_type]}"


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("deepseek_v4", "DeepseekV4ForCausalLM is not understood: layer 'model.layers.0' returns no "),
        ("blt", "BltForCausalLM is not understood: the input of layer 'model.local_encoder.layers.0' is not the "),
    ],
)
def test_a_refused_class_names_its_reason(model_type: str, reason: str) -> None:
    verdict = check_class(CLASSES["causal", model_type])
    assert verdict.status == "refused" and not verdict.traced
    assert verdict.reason.startswith(reason)
    assert verdict.attention == ()


def test_a_class_that_says_it_has_no_sdpa_is_certified_under_eager_alone() -> None:
    with pytest.raises(NoSdpa):
        build_tiny(CLASSES["causal", "bloom"], "sdpa")


def test_a_class_that_cannot_be_built_says_why() -> None:
    verdict = check_class(ModelClass("causal", "llama", "NoSuchClass"))
    assert (verdict.status, verdict.reason) == ("not buildable", "transformers has no class NoSuchClass")


# -- the page ------------------------------------------------------------------------------------------------

VERDICTS = [
    Verdict(ModelClass("causal", "one", "OneForCausalLM"), "supported", attention=BOTH),
    Verdict(
        ModelClass("causal", "two", "TwoForCausalLM"),
        "partly",
        missing={"dec.q": "a|b", "dec.k": "a|b", "dec.mlp_out": "no\nmodule"},
        derived=True,
        padded=False,
        attention=EAGER,
        notes=("a note",),
    ),
    Verdict(ModelClass("causal", "three", "ThreeForCausalLM"), "refused", "it is\nodd | strange"),
    Verdict(ModelClass("masked", "four", "FourForMaskedLM"), "not applicable", "it has no attention: none"),
    Verdict(ModelClass("masked", "five", "FiveForMaskedLM"), "not buildable", "too large"),
    Verdict(ModelClass("seq2seq", "six", "SixForConditionalGeneration"), "supported", attention=EAGER),
]


def test_counts_are_by_kind_and_status() -> None:
    assert {kind: dict(found) for kind, found in counts(VERDICTS).items()} == {
        "causal": {"supported": 1, "partly": 1, "refused": 1},
        "masked": {"not applicable": 1, "not buildable": 1},
        "seq2seq": {"supported": 1},
    }


def test_the_page_has_one_line_a_class() -> None:
    page = markdown(VERDICTS)
    table = page[page.index("| | classes") :]
    assert f"transformers {version('transformers')}" in page
    assert table == (
        "| | classes | supported | partly | refused | not applicable | not buildable |\n"
        "|---|---|---|---|---|---|---|\n"
        "| Causal language models | 3 | 1 | 1 | 1 | 0 | 0 |\n"
        "| Masked language models | 2 | 0 | 0 | 0 | 1 | 1 |\n"
        "| Sequence to sequence | 1 | 1 | 0 | 0 | 0 | 0 |\n"
        "\n"
        "## Causal language models\n"
        "\n"
        "| model type | class | status | attention | remarks |\n"
        "|---|---|---|---|---|\n"
        "| one | OneForCausalLM | supported | eager, sdpa |  |\n"
        "| two | TwoForCausalLM | partly | eager | post_attn derived; no dec.q, dec.k: a\\|b; no dec.mlp_out: "
        "no module; padding changes its numbers: batches of one length; a note |\n"
        "| three | ThreeForCausalLM | refused | – | see below |\n"
        "\n"
        "## Masked language models\n"
        "\n"
        "| model type | class | status | attention | remarks |\n"
        "|---|---|---|---|---|\n"
        "| four | FourForMaskedLM | not applicable | – | see below |\n"
        "| five | FiveForMaskedLM | not buildable | – | see below |\n"
        "\n"
        "## Sequence to sequence\n"
        "\n"
        "| model type | class | status | attention | remarks |\n"
        "|---|---|---|---|---|\n"
        "| six | SixForConditionalGeneration | supported | eager |  |\n"
        "\n"
        "## Refused, not applicable, not buildable\n"
        "\n"
        "| kind | model type | status | reason |\n"
        "|---|---|---|---|\n"
        "| causal | three | refused | it is odd \\| strange |\n"
        "| masked | four | not applicable | it has no attention: none |\n"
        "| masked | five | not buildable | too large |\n"
    )


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_writes_the_table_of_the_types_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    with pytest.raises(SystemExit) as ended:
        main(["--only", "llama", "bert", "--out", str(out)])
    assert ended.value.code == 0
    lines = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert lines == [
        "| | classes | supported | partly | refused | not applicable | not buildable |",
        "| Causal language models | 2 | 2 | 0 | 0 | 0 | 0 |",
        "| Multiple choice | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| Masked language models | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| model type | class | status | attention | remarks |",
        "| bert | BertLMHeadModel | supported | eager, sdpa |  |",
        "| llama | LlamaForCausalLM | supported | eager, sdpa |  |",
        "| model type | class | status | attention | remarks |",
        "| bert | BertForMultipleChoice | supported | eager, sdpa |  |",
        "| model type | class | status | attention | remarks |",
        "| bert | BertForMaskedLM | supported | eager, sdpa |  |",
        "| kind | model type | status | reason |",
    ]
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "causal          llama                   supported"
    assert said[-1] == f"Table: {out}"
    assert logging.root.manager.disable == logging.NOTSET  # what the caller logs afterwards is heard


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (
            ["--only", "nonsense", "llama"],
            "error: --only nonsense: no such model type among causal, multiple_choice, masked, seq2seq.\n",
        ),
        (["--kind", "masked", "--only", "llama"], "error: --only llama: no such model type among masked.\n"),
    ],
)
def test_an_unknown_type_is_one_error(flags: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", error)


def test_quiet_prints_the_counts_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "fnet", "--kind", "masked", "--quiet"])
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line] == [
        ["supported", "partly", "refused", "not", "applicable", "not", "buildable"],
        ["masked", "0", "0", "0", "1", "0"],
    ]
