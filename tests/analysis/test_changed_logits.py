"""Lens and attribution of models that scale or cap their logits, against their formulas in float64."""

import json
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
import zarr
from support.models import byte_tokenizer
from support.runs import copy_run, reseal

from decision_traces import TraceStore
from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.attribution.grid import attribution_and_grid
from decision_traces.analysis.lens import unembedding
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.cli import attribution as attribution_command
from decision_traces.errors import ModelError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

CAP = 4.0
# Per family: what its config says, its formula from the unembedding to the logits, and back to what adds up.
FAMILIES = {
    "gemma2": ({"final_logit_softcapping": CAP}, lambda u: CAP * np.tanh(u / CAP), lambda x: CAP * np.arctanh(x / CAP)),
    "cohere": ({"logit_scale": 0.25}, lambda u: 0.25 * u, lambda x: x),
    "granite": ({"logits_scaling": 13.0}, lambda u: u / 13.0, lambda x: x),
}
TEXTS = ("The cat sat on the mat.", "ab", "A somewhat longer line.")


@pytest.fixture(scope="module")
def traced(tiny_folder, tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def run(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            (folder / "lines.txt").write_text("\n".join(TEXTS))
            made[family] = extract_next_token(
                NextTokenConfig(
                    model="tiny", model_path=tiny_folder(family, **FAMILIES[family][0]), dtype="float32",
                    text_file=folder / "lines.txt", out_dir=folder / "run", store_unembed=True,
                )
            )  # fmt: skip
        return made[family]

    return run


def _unembedded(model, states: np.ndarray) -> np.ndarray:
    return states.astype(np.float64) @ model.get_output_embeddings().weight.detach().double().numpy().T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_ends_in_the_models_own_logits(family: str, traced, tiny_folder) -> None:
    options, formula, _ = FAMILIES[family]
    store, model = TraceStore(traced(family)), plain.load(tiny_folder(family, **options))
    lens = logit_lens(store, load_unembedding(store))
    assert lens.model_error < 1e-5
    for row, text in enumerate(TEXTS):
        ids = byte_tokenizer()(text)["input_ids"]
        seen = plain.run_alone(model, family, ids)
        own = seen.logits[len(ids) - 2].double().numpy()
        np.testing.assert_allclose(lens.true.logit[row, -1], own[ids[-1]], atol=1e-5)
        np.testing.assert_allclose(lens.pred.logit[row, -1], own.max(), atol=1e-5)
        by_hand = formula(_unembedded(model, seen.hidden[-1, len(ids) - 2]))
        np.testing.assert_allclose(by_hand, own, atol=1e-5)
        before = model.model.norm(torch.from_numpy(seen.hidden[1, len(ids) - 2])).detach().numpy()
        np.testing.assert_allclose(lens.true.logit[row, 1], formula(_unembedded(model, before))[ids[-1]], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_lead(family: str, traced, tiny_folder, tmp_path: Path) -> None:
    options, _, back = FAMILIES[family]
    store, model = TraceStore(traced(family)), plain.load(tiny_folder(family, **options))
    head = load_unembedding(store)
    result = direct_attribution(store, head)
    assert result.logit_cap == (pytest.approx(CAP) if family == "gemma2" else None)
    total = result.embed + result.attn.sum(1) + result.mlp.sum(1) + result.remainder
    attribution_and_grid(store, head, None, tmp_path)
    grid = zarr.open_group(tmp_path / "contributions.zarr", mode="r")
    assert ("logit_cap" in grid.attrs) == (family == "gemma2")
    for row, text in enumerate(TEXTS):
        ids = byte_tokenizer()(text)["input_ids"]
        own = back(plain.run_alone(model, family, ids).logits[len(ids) - 2].double().numpy())
        lead = own[ids[-1]] - own[result.competitor_id[row]]
        np.testing.assert_allclose([total[row], result.difference[row]], lead, atol=2e-4 * (1 + abs(lead)))
        candidates = grid["candidates"][row, 0]
        leads = grid["parts"][row, 0].sum(1)
        np.testing.assert_allclose(leads, own[ids[-1]] - own[candidates], atol=2e-4 * (1 + np.abs(own).max()))


@pytest.mark.parametrize("wrong", [None, 2 * CAP])
def test_another_cap_than_the_runs_is_refused(wrong: float | None, traced) -> None:
    store = TraceStore(traced("gemma2"))
    head = load_unembedding(store)
    with pytest.raises(ModelError, match="not the one of the run"):
        direct_attribution(store, unembedding.Unembedding(head.norm, head.head, unembedding.LogitMap(cap=wrong)))


def test_attribution_says_that_it_is_before_the_cap(traced, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    run = copy_run(traced("gemma2"), tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        attribution_command.main([str(run)])
    said = capsys.readouterr().out
    assert ended.value.code in {0, None} and "logit difference before the cap" in said
    assert "The model caps its logits at 4, behind this sum: the lead before the cap is split up." in said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_holds_its_head_needs_no_model(family: str, traced, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TraceStore(traced(family))
    monkeypatch.setattr(unembedding, "load_run_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert logit_lens(store, load_unembedding(store)).model_error < 1e-5


def test_a_run_of_an_older_tool_takes_factor_and_cap_from_the_model(traced, tmp_path: Path) -> None:
    run = copy_run(traced("gemma2"), tmp_path / "run")
    told = json.loads((run / "meta.json").read_text())
    assert (told["logits_are_unembedded"], told["logit_cap"]) == (False, pytest.approx(CAP))
    del told["logit_factor"], told["logit_cap"]
    (run / "meta.json").write_text(json.dumps(told))
    reseal(run)
    assert load_unembedding(TraceStore(run)).ending.cap == pytest.approx(CAP)
