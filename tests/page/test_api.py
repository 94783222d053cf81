"""The server in-process: right numbers, small answers, nothing outside the run, errors that are sentences."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from starlette.testclient import TestClient
from support.encoders import save_tiny_masked_encoder
from support.runs import CHOICES, DECODER, ENCDEC, HYBRID, SELECTED, TinyRun, build_run

from decision_traces import TraceStore
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.page.app import create_app
from decision_traces.page.guard import Entry
from decision_traces.page.resources import bundle_paths
from decision_traces.page.runs import PageRun
from decision_traces.page.slices import LARGEST
from decision_traces.page.text import shown_tokens
from decision_traces.store.files.results_place import ResultsPlace


def test_the_list_has_the_tables_figures(client: TestClient, demo_run: Path) -> None:
    tokens = TraceStore(demo_run).tokens
    meta = client.get("/api/r0/meta.json").json()
    assert (meta["n"], meta["L"], meta["H"], meta["missing"]) == (12, 5, 4, {})
    names = [figure["name"] for figure in meta["figures"]]
    assert names[:3] == ["correct", "entropy", "margin"] and {"stable_from", "flips"} <= set(names)
    entropy = np.frombuffer(client.get("/api/r0/columns/entropy/0.bin").content, "<f4")
    assert np.array_equal(entropy, tokens["next_entropy"].to_numpy(np.float32))
    rows = client.get("/api/r0/rows/0.json").json()
    assert rows["id"] == list(tokens["example_id"]) and rows["target"] == list(tokens["next_true_token"])
    assert all(
        row in " ".join(text.split())
        for row, text in zip([r.lstrip("…") for r in rows["text"]], tokens["text"], strict=True)
    )


def test_tokens_are_cut_out_of_the_text(client: TestClient, demo_run: Path) -> None:
    store = TraceStore(demo_run)
    found = client.get("/api/r0/e/3/c0/tokens.json").json()
    assert "".join(found["tokens"]) == store.text(3) and found["n_tokens"] == store.n_tokens(3)
    assert found["decision"]["pos"] == store.tokens["next_pos"][3]
    assert found["decision"]["pred"]["text"] == store.tokens["next_pred_token"][3]


def test_a_character_of_several_tokens_is_shown_once() -> None:
    row = {"tokens": ["Ġa", "ðŁ", "ĺĢ", "b"], "offset_mapping": [(0, 2), (2, 3), (2, 3), (3, 4)]}
    assert shown_tokens(row, (" a\N{GRINNING FACE}b",), 0, 4) == [" a", "\N{GRINNING FACE}", "⋯", "b"]


def test_attention_is_the_stores(client: TestClient, demo_run: Path) -> None:
    store = TraceStore(demo_run)
    expected = store.attn(2, layer=3, head=1, trim=True)
    n = len(expected)
    exact = np.frombuffer(client.get("/api/r0/e/2/c0/attn/3/1/0.f16").content, "<f2").reshape(n, n)
    assert np.array_equal(exact, expected)
    drawn = np.frombuffer(client.get("/api/r0/e/2/c0/attn/3/1.u8").content, np.uint8).reshape(n, n)
    assert np.abs((drawn / 255.0) ** 2 - expected.astype(np.float64)).max() < 0.005
    twin = client.get("/api/r0/e/2/c0/attn/3/1/0.json").json()
    assert np.allclose(twin["attention"], expected, atol=6e-4)
    scope = {"st": store}
    assert np.array_equal(eval(twin["python"], scope), expected)


def test_attention_of_a_choice(client: TestClient, choice_run: Path) -> None:
    store = TraceStore(choice_run)
    expected = store.mcq_attn(1, choice_idx=2, layer=1, head=0, trim=True)
    found = np.frombuffer(client.get("/api/r2/e/1/c2/attn/1/0/0.f16").content, "<f2")
    assert np.array_equal(found.reshape(expected.shape), expected)
    tokens = client.get("/api/r2/e/1/c2/tokens.json").json()
    assert len(tokens["choices"]) == 5 and tokens["n_tokens"] == len(expected)


def test_the_lens_ends_in_the_models_own_prediction(client: TestClient, demo_run: Path) -> None:
    tokens = TraceStore(demo_run).tokens
    for row in range(12):
        head = client.get(f"/api/r0/e/{row}/lens.json").json()
        shape = (head["depths"], len(head["pos"]))
        n = shape[0] * shape[1]
        assert n <= head["states_per_block"]
        body = client.get(f"/api/r0/e/{row}/lens/0.bin").content
        whole = np.frombuffer(body, "<i4", n * (1 + head["top"]))
        halves = np.frombuffer(body, "<f2", offset=whole.nbytes)
        values = {"rank": whole[:n].reshape(shape)}
        values |= {name: halves[i * n : (i + 1) * n].reshape(shape) for i, name in enumerate(("prob", "entropy", "kl"))}
        assert len(halves) == n * (3 + head["top"] + len(head["candidates"][0]))
        slot = head["pos"].index(int(tokens["next_pos"][row]))
        prob, rank, entropy, kl = (float(values[name][-1, slot]) for name in ("prob", "rank", "entropy", "kl"))
        assert prob == pytest.approx(tokens["next_true_prob"][row], abs=2e-3)
        assert rank == tokens["next_true_rank"][row] and kl == 0
        assert entropy == pytest.approx(tokens["next_entropy"][row], abs=5e-3)
        twin = client.get(f"/api/r0/e/{row}/lens/entropy.json").json()
        assert np.allclose(twin["entropy"], values["entropy"], atol=5e-3)
        assert head["candidates"][slot][0] == tokens["next_true_id"][row]
        assert head["words"][str(tokens["next_pred_id"][row])] == tokens["next_pred_token"][row]


def test_contributions_to_any_competitor_add_up(client: TestClient, demo_run: Path) -> None:
    tokens = TraceStore(demo_run).tokens
    table = pd.read_parquet(demo_run / "analysis" / "attribution" / "attribution.parquet")
    for row in range(0, 12, 3):
        position = int(tokens["next_pos"][row])
        found = client.get(f"/api/r0/e/{row}/contributions/{position}.json").json()
        ids = [candidate["id"] for candidate in found["candidates"]]
        values = np.asarray(found["values"])
        ours = table[table["example_id"] == tokens["example_id"][row]]
        at = ids.index(int(ours["competitor_id"].iloc[0]))
        whole = ours[ours["part"].isin(["embed", "attn", "mlp", "remainder"])]
        assert values[at].sum() == pytest.approx(whole["logits"].sum(), abs=1e-3)
        heads = ours[ours["part"] == "head"]["logits"].to_numpy().reshape(5, 4)
        assert np.allclose(np.asarray(found["heads"])[at], heads, atol=1e-3)
        # Any other pair too: the difference of their logits is that of the logarithms of their probabilities.
        top = dict(zip(tokens["next_topk_ids"][row], tokens["next_topk_probs"][row], strict=True))
        pair = [i for i in ids if i in top][1:3]
        lead = values[ids.index(pair[1])] - values[ids.index(pair[0])]
        assert lead.sum() == pytest.approx(np.log(top[pair[0]] / top[pair[1]]), abs=0.02)


def test_contributions_against_every_other_choice_add_up(client: TestClient, choice_run: Path) -> None:
    tokens = TraceStore(choice_run).tokens
    for row in range(3):
        found = client.get(f"/api/r2/e/{row}/contributions/0.json").json()
        logits, right = tokens["choice_logits"][row], tokens["label_idx"][row]
        ids = [candidate["id"] for candidate in found["candidates"]]
        assert ids[0] == right and sorted(ids) == [0, 1, 2, 3, 4]
        assert ids[1] == max(set(range(5)) - {right}, key=lambda choice: logits[choice])
        leads = [sum(parts) for parts in found["values"]]
        assert np.allclose(leads, [logits[right] - logits[choice] for choice in ids], atol=1e-4)


def test_every_masked_token_has_its_prediction(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the dog ran to the house and the dog ran back home\n" * 3)
    model = save_tiny_masked_encoder(tmp_path / "bert", "bert")
    config = TextConfig(
        model_path=model, text_file=tmp_path / "texts.txt", mask_prob=0.4, capture=("hidden",), out_dir=tmp_path / "run"
    )
    extract_texts(config)
    masked = TestClient(create_app([PageRun("r0", ResultsPlace(tmp_path / "run"))]), base_url="http://localhost")
    table = pd.read_parquet(tmp_path / "run" / "tokens.parquet")
    for row in range(3):
        found = masked.get(f"/api/r0/e/{row}/c0/tokens.json").json()
        assert len(found["decisions"]) == len(table["masked_pos"][row]) > 1
        assert found["decision"] == found["decisions"][0]
        for i, told in enumerate(found["decisions"]):
            assert told["pos"] == table["masked_pos"][row][i] and found["tokens"][told["pos"]] == "<m>"
            assert [told["true"]["id"], told["pred"]["id"]] == [
                table[f"masked_{w}_ids"][row][i] for w in ("true", "pred")
            ]
            assert told["true"]["prob"] == pytest.approx(table["masked_true_probs"][row][i], rel=1e-4)
            assert told["rank"] == table["masked_true_ranks"][row][i]
            assert told["correct"] == (told["rank"] == 1) and len(told["top"]) == 2 - told["correct"]


def test_every_position_has_its_truth(client: TestClient, demo_run: Path) -> None:
    store = TraceStore(demo_run)
    head = client.get("/api/r0/e/5/lens.json").json()
    ids = store.encodings(5, trim=True)["input_ids"]
    assert [c[0] for c in head["candidates"][:-1]] == list(ids[1:]) and head["known"] == [1] * (len(ids) - 1) + [0]


def test_the_lens_by_choice_ends_where_the_table_says(client: TestClient, question_run: Path, choice_run: Path) -> None:
    for key, run in (("r1", question_run), ("r2", choice_run)):
        probs = TraceStore(run).tokens["choice_probs"]
        for row in range(4):
            by_choice = client.get(f"/api/{key}/e/{row}/by_choice.json").json()
            assert np.allclose(by_choice["probs"][-1], probs[row], atol=0.02)


def test_text_is_searched(client: TestClient, demo_run: Path) -> None:
    bits = np.frombuffer(client.get("/api/r0/search", params={"q": "THE "}).content, np.uint8)
    found = np.unpackbits(bits, bitorder="little")[:12].astype(bool)
    assert np.array_equal(found, TraceStore(demo_run).tokens["text"].str.lower().str.contains("the "))
    assert client.get("/api/r0/search", params={"q": "%_.*"}).content == b"\0\0"


RUNS = {
    "decoder": DECODER,
    "choices": CHOICES,
    "selected": SELECTED,
    "hybrid": HYBRID,
    "encoder-decoder": ENCDEC,
    "encoder": TinyRun(capture=("hidden",), side="enc", objective="encode"),
    "older tools": TinyRun(layout="v2"),
    "one position": TinyRun(positions="next"),
    "masked": TinyRun(objective="masked", side="enc"),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_any_run_opens_and_says_what_is_missing(tmp_path: Path, run: TinyRun) -> None:
    build_run(tmp_path / "run", run)
    page = PageRun("r0", ResultsPlace(tmp_path / "run"))
    small = TestClient(create_app([page]), base_url="http://localhost")
    meta = small.get("/api/r0/meta.json").json()
    for said in meta["missing"].values():
        assert said["why"].endswith((".", "?"))
    for path, make in bundle_paths(page, page.store.n):
        answer = small.get(f"/api/r0/{path}")
        assert answer.status_code == 200, (path, answer.text)
        told = answer.content
        if path == "meta.json":  # a bundle goes to others, to whom the folder here says nothing
            told = told.replace(str(page.run_dir).encode(), b"run")
        assert told == make().body and len(answer.content) <= LARGEST


def test_missing_panels_name_the_flag_and_the_command(client: TestClient, bare_run: Path) -> None:
    missing = client.get("/api/r3/meta.json").json()["missing"]
    assert "`attn` among the words of --capture" in missing["attention"]["why"]
    assert missing["lens"]["command"] == f"decision-traces lens {bare_run} --all_positions"
    assert "`resid`" in missing["contributions"]["why"] and missing["contributions"]["command"] == ""
    answer = client.get("/api/r3/e/0/lens.json")
    assert answer.status_code == 404 and "decision-traces lens" in answer.json()["error"]


def test_every_answer_is_small(client: TestClient, demo_run: Path, choice_run: Path) -> None:
    for run in (PageRun("r0", ResultsPlace(demo_run)), PageRun("r2", ResultsPlace(choice_run))):
        for path, _ in bundle_paths(run, 3):
            answer = client.get(f"/api/{run.key}/{path}")
            assert answer.status_code == 200 and len(answer.content) <= LARGEST, path


def test_what_is_known_is_not_sent_again(client: TestClient, demo_run: Path) -> None:
    first = client.get("/api/r0/e/0/lens.json")
    again = client.get("/api/r0/e/0/lens.json", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    other = client.get("/api/r0/e/1/lens.json", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200
    (demo_run / "analysis" / "lens" / "record.json").touch()
    assert client.get("/api/r0/e/0/lens.json", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8377", "", "[::2]:80"])
def test_another_name_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/r0/meta.json", headers={"Host": host})
    assert answer.status_code == 400 and "demo" not in answer.text
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8377", "localhost:1", "[::1]:8377", "LOCALHOST"])
def test_its_own_names_are_not(client: TestClient, host: str) -> None:
    assert client.get("/api/runs.json", headers={"Host": host}).status_code == 200


def test_a_server_for_everybody_is_asked_by_its_numbers(demo_run: Path) -> None:
    app = create_app([PageRun("r0", ResultsPlace(demo_run))], Entry(by_number=True))
    for host in ("192.168.1.5:8377", "[2001:db8::1]", "localhost"):
        assert TestClient(app, base_url=f"http://{host}").get("/api/runs.json").status_code == 200
    for host in ("evil.example", "192.168.1.5.evil.example"):
        assert TestClient(app, base_url=f"http://{host}").get("/api/runs.json").status_code == 400


def test_what_nobody_foresaw_is_a_sentence(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageRun, "missing", lambda _: 1 / 0)
    client = TestClient(
        create_app([PageRun("r0", ResultsPlace(demo_run))]),
        base_url="http://localhost",
        raise_server_exceptions=False,
    )
    answer = client.get("/api/r0/meta.json")
    assert answer.status_code == 500
    assert "ZeroDivisionError: division by zero" in answer.json()["error"] and "--validate" in answer.json()["error"]


def test_one_head_is_read_alone(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = PageRun("r0", ResultsPlace(demo_run)), []
    whole = type(run.store).attn
    monkeypatch.setattr(type(run.store), "attn", lambda *a, **k: read.append(a[-1]) or whole(*a, **k))
    client = TestClient(create_app([run]), base_url="http://localhost")
    alone = client.get("/api/r0/e/1/c0/attn/2/3.u8").content
    client.get("/api/r0/e/1/c0/attn/2/thumbs.u8")
    again = client.get("/api/r0/e/1/c0/attn/2/3/0.f16").content
    assert read == [3, None]
    assert np.array_equal(np.frombuffer(again, "<f2"), whole(run.store, 1, "dec", "self", 2, 3, trim=True).ravel())
    assert len(alone) == len(again) // 2


OUTSIDE = (
    "..",
    "../..",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fmeta",
    "/etc/passwd",
    "....//",
    "r0/../../meta",
    "\\..\\x",
    "%00",
    "meta.json%00",
)
PLACES = (
    "/{}",
    "/assets/{}",
    "/api/{}/meta.json",
    "/api/r0/{}",
    "/api/r0/columns/{}/0.bin",
    "/api/r0/rows/{}.json",
    "/api/r0/e/{}/lens.json",
    "/api/r0/e/0/c{}/tokens.json",
    "/api/r0/e/0/c0/attn/{}/0.u8",
    "/api/r0/e/0/c0/attn/0/{}.u8",
    "/api/r0/e/0/lens/{}.bin",
    "/api/r0/e/0/lens/{}.json",
    "/api/r0/e/0/contributions/{}.json",
    "/api/r0/row?example={}",
)


@pytest.mark.parametrize("bad", OUTSIDE)
def test_no_path_leads_outside(client: TestClient, bad: str) -> None:
    for place in PLACES:
        answer = client.get(place.format(bad))
        # The client itself resolves `..`: what is left of some is the address of the page, or of what a run is.
        allowed = {200, 400, 404, 405} if answer.url.path in {"/", "/api/r0/meta.json"} else {400, 404, 405}
        assert answer.status_code in allowed, (place, answer.status_code)
        assert "root:" not in answer.text and "format_version" not in answer.text


MALFORMED = (
    "e/x/lens.json",
    "e/1e3/lens.json",
    "e/0/c0/attn/one/0.u8",
    "rows/1.5.json",
    "columns/nothing/0.bin",
    "e/0/lens/nothing.json",
    "search",
    f"search?q={'x' * 201}",
)
ABSENT = (
    "e/12/lens.json",
    "e/0/c1/tokens.json",
    "e/0/c0/attn/5/0.u8",
    "e/0/c0/attn/0/4.u8",
    "e/0/contributions/500.json",
    "row?example=none",
    "rows/9.json",
    "rows/-1.json",
    "columns/entropy/1.bin",
    "columns/entropy/-1.bin",
    "e/0/lens/99.bin",
    "e/0/c0/attn/0/0/7.f16",
)


@pytest.mark.parametrize("path", MALFORMED)
def test_malformed_questions_get_a_sentence(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/r0/{path}")
    assert answer.status_code == 400 and answer.json()["error"].endswith(".")


@pytest.mark.parametrize("path", ABSENT)
def test_what_is_not_there_is_said(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/r0/{path}")
    assert answer.status_code == 404 and len(answer.json()["error"]) > 15


def test_nothing_can_be_changed(client: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/api/r0/meta.json").status_code == 405


def test_a_browser_is_told_to_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200 and '<div id="page">' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe-eval" not in policy and "script-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/r3/e/0/c0/tokens.json").headers["content-type"] == "application/json"


def test_looking_needs_no_torch(demo_run: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from starlette.testclient import TestClient
from decision_traces.page.app import create_app
from decision_traces.page.runs import PageRun
from decision_traces.store.files.results_place import ResultsPlace
client = TestClient(create_app([PageRun("r0", ResultsPlace(Path({str(demo_run)!r})))]), base_url="http://localhost")
for path in ("meta.json", "e/0/lens.json", "e/0/c0/attn/0/0.u8", "e/0/c0/tokens.json"):
    assert client.get("/api/r0/" + path).status_code == 200
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_groups_say_what_they_hold(demo_run: Path) -> None:
    places = (("lens/lens", {"prob", "top_ids", "candidates"}), ("attribution/contributions", {"parts", "heads"}))
    for name, arrays in places:
        group = zarr.open_group(demo_run / "analysis" / f"{name}.zarr", mode="r")
        assert arrays <= set(group.array_keys())
        for _, array in group.arrays():
            assert array.attrs["doc"] and array.metadata.dimension_names[0] == "example"


def test_a_panel_offers_no_command_that_the_run_cannot_have(tmp_path: Path) -> None:
    some = NextTokenConfig(model="demo", dataset="tinyworld", limit=4, layers=(0, 1), out_dir=tmp_path / "run")
    missing = PageRun("r0", ResultsPlace(extract_next_token(some))).missing()
    for panel in ("lens", "contributions"):
        assert missing[panel]["command"] == "" and "This run keeps layers 0, 1 only" in missing[panel]["why"]
