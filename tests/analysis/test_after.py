"""What the model says comes after a text: lens, attribution, page and accessor, against plain transformers alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plain
import pytest
import torch
import zarr
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis.attribution.direct import direct_attribution
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.cli import attribution, lens
from decision_traces.demo import MODEL_DIR
from decision_traces.errors import UsageError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.page.app import create_app
from decision_traces.page.runs import PageRun
from decision_traces.store.files.results_place import ResultsPlace

TEXTS = ("Every morning Lena has", "The cat sat on the mat and", "the", "One two three")
Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs over `TEXTS`, looked at by both commands: by `--positions`."""
    base, made = tmp_path_factory.mktemp("prompts"), {}
    (base / "lines.txt").write_text("\n".join(TEXTS))

    def run(positions: str) -> Path:
        if positions not in made:
            made[positions] = extract_next_token(
                NextTokenConfig(
                    model="demo", text_file=base / "lines.txt", capture=("attn", "qkv", "hidden", "resid"),
                    dtype="float32", positions=positions, out_dir=base / positions,
                )
            )  # fmt: skip
            for main in (lens.main, attribution.main):
                with pytest.raises(SystemExit) as stopped:
                    main([str(base / positions), "--quiet"])
                assert not stopped.value.code
        return made[positions]

    return run


@cache
def _model() -> Any:
    return plain.load(MODEL_DIR)


@pytest.fixture(scope="module")
def at_the_end() -> list[plain.Plain]:
    """Each text run alone by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return [plain.run_alone(_model(), "gpt2", tokenizer(text)["input_ids"]) for text in TEXTS]


def _best(seen: plain.Plain) -> np.ndarray:
    return np.argsort(-np.asarray(seen.logits[-1], np.float64))


def _expected_lens(seen: plain.Plain) -> np.ndarray:
    """Logits (depth, vocabulary) at the last token."""
    model = _model()
    with torch.no_grad():
        before = model.lm_head(model.transformer.ln_f(torch.from_numpy(np.asarray(seen.hidden[:-1, -1])))).double()
    return np.concatenate([before.numpy(), np.asarray(seen.logits[None, -1], np.float64)])


def _expected_parts(seen: plain.Plain) -> tuple[np.ndarray, float]:
    """Contributions (embed, attn 0, mlp 0, …, remainder) to the lead over the competitor, and that lead; float64."""
    model, (said, competitor) = _model(), _best(seen)[:2]
    norm, head = model.transformer.ln_f, model.lm_head.weight.detach().double().numpy()
    along, weight = head[said] - head[competitor], norm.weight.detach().double().numpy()
    pre, mid, post = (np.asarray(getattr(seen, n)[:, -1], np.float64) for n in ("pre_attn", "post_attn", "post_mlp"))
    spread = np.sqrt(post[-1].var() + norm.eps)
    steps = np.stack([mid - pre, post - mid], axis=1).reshape(-1, post.shape[1])
    writes = np.concatenate([pre[:1], steps])
    parts = (writes - writes.mean(1, keepdims=True)) / spread * weight @ along
    logits = np.asarray(seen.logits[-1], np.float64)
    return np.append(parts, norm.bias.detach().double().numpy() @ along), logits[said] - logits[competitor]


@pytest.mark.parametrize(("positions", "kind"), [("all", "after"), ("last", None)])
def test_the_lens_follows_what_is_said(positions: str, kind, prompts: Runs, at_the_end) -> None:
    store = TraceStore(prompts(positions))
    seen = logit_lens(store, load_unembedding(store), kind=kind)
    for row, there in enumerate(at_the_end):
        logits, (said, competitor) = _expected_lens(there), _best(there)[:2]
        assert (seen.true_id[row], seen.pred_id[row], seen.competitor_id[row]) == (-1, said, competitor)
        np.testing.assert_allclose(seen.pred.logit[row], logits[:, said], atol=1e-3)
        np.testing.assert_allclose(seen.competitor.logit[row], logits[:, competitor], atol=1e-3)
        assert seen.top_id[row].tolist() == logits.argmax(1).tolist()
    assert not seen.known.any() and seen.model_error < 1e-5


@pytest.mark.parametrize(("positions", "kind"), [("all", "after"), ("last", None)])
def test_parts_sum_to_the_lead_over_the_runner_up(positions: str, kind, prompts: Runs, at_the_end) -> None:
    store = TraceStore(prompts(positions))
    result = direct_attribution(store, load_unembedding(store), kind=kind)
    for row, there in enumerate(at_the_end):
        parts, lead = _expected_parts(there)
        assert parts.sum() == pytest.approx(lead, abs=1e-3)
        found = np.stack([result.attn[row], result.mlp[row]], axis=1).ravel()
        np.testing.assert_allclose([result.embed[row], *found, result.remainder[row]], parts, atol=1e-3)
        assert result.difference[row] == pytest.approx(lead, abs=1e-3)
        assert (result.target_id[row], result.competitor_id[row]) == tuple(_best(there)[:2])


@pytest.mark.parametrize("positions", ["all", "last"])
def test_results_hold_the_place_behind_the_text(positions: str, prompts: Runs, at_the_end) -> None:
    seen, split = (
        zarr.open_group(prompts(positions) / "analysis" / name, mode="r")
        for name in ("lens/lens.zarr", "attribution/contributions.zarr")
    )
    for row, there in enumerate(at_the_end):
        n, (said, competitor) = len(there.logits), _best(there)[:2]
        places = [[max(-1, n - 2), n - 1], [n - 1]][positions == "last"]
        assert seen["positions"][row].tolist() == split["positions"][row].tolist() == places
        assert seen["known"][row].tolist()[:-1] == [int(n > 1)] * (len(places) - 1) and seen["known"][row][-1] == 0
        for group in (seen, split):
            assert group["candidates"][row, -1, 0] == said
        at = split["candidates"][row, -1].tolist().index(competitor)
        np.testing.assert_allclose(split["parts"][row, -1, at], _expected_parts(there)[0], atol=1e-3)
        assert seen["top_ids"][row, :, -1, 0].tolist() == _expected_lens(there).argmax(1).tolist()
    table = pd.read_parquet(prompts(positions) / "analysis" / "lens" / "lens.parquet")
    assert table["true_id"].eq(-1).all() == (positions == "last")


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_page_shows_it_at_the_last_token(positions: str, prompts: Runs, at_the_end) -> None:
    client = TestClient(create_app([PageRun("r", ResultsPlace(prompts(positions)))]), base_url="http://127.0.0.1")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    said = [tokenizer.decode([_best(there)[0]]) for there in at_the_end]
    for row, there in enumerate(at_the_end):
        tokens = client.get(f"/api/r/e/{row}/c0/tokens.json").json()
        n, end = len(there.logits), tokens["decisions"][-1]
        assert [made["pos"] for made in tokens["decisions"]] == (
            [n - 1] if positions == "last" or n < 2 else [n - 2, n - 1]
        )
        assert (end["pred"]["text"], end["known"], end["correct"], end["true"]) == (said[row], False, None, None)
        assert [token["id"] for token in end["top"]] == _best(there)[:10].tolist()
        parts = client.get(f"/api/r/e/{row}/contributions/{n - 1}.json").json()
        lead = dict(zip([c["id"] for c in parts["candidates"]], parts["values"], strict=True))[_best(there)[1]]
        assert sum(lead) == pytest.approx(_expected_parts(there)[1], abs=1e-3)
    figures = {"all": ["correct", "after_entropy"], "last": ["entropy"]}[positions]
    named = [figure["name"] for figure in client.get("/api/r/meta.json").json()["figures"]]
    assert set(figures) <= set(named) and ("correct" in named) == (positions == "all")
    entropy = np.frombuffer(client.get(f"/api/r/columns/{figures[-1]}/0.bin").content, "<f4")
    logits = np.stack([np.asarray(there.logits[-1], np.float64) for there in at_the_end])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(entropy, -(probs * np.log(probs)).sum(1), rtol=1e-4)
    listed = client.get("/api/r/rows/0.json").json()
    assert (listed["said"] == said, "target" in listed) == (positions == "last", positions != "last")


def test_a_row_says_what_comes_next(prompts: Runs, at_the_end) -> None:
    store = TraceStore(prompts("last"))
    for row, there in enumerate(at_the_end):
        found, logits = store.outcome(row, "after"), np.asarray(there.logits[-1], np.float64)
        probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = _best(there)
        assert (found["pos"], found["pred_id"], found["true_id"]) == (len(there.logits) - 1, best[0], None)
        assert found["topk_ids"] == best[:10].tolist()
        assert found["pred_prob"] == pytest.approx(probs[best[0]], rel=1e-4)
        assert store.outcome(row)["pos"] == max(-1, len(there.logits) - 2)
    with pytest.raises(UsageError, match="No prediction 'last': valid are 'next', 'after'"):
        store.outcome(0, "last")


def test_heads_need_all_positions_and_the_rest_is_done(prompts: Runs, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        attribution.main([str(prompts("last"))])
    said = " ".join(capsys.readouterr().out.split())
    assert not stopped.value.code
    assert "Attention is not split by head: This run keeps positions last only" in said


def test_a_decision_that_is_not_kept_is_refused(prompts: Runs) -> None:
    store = TraceStore(prompts("last"))
    with pytest.raises(UsageError, match="no decision 'next' to look at, only 'after'"):
        logit_lens(store, load_unembedding(store), kind="next")
