"""What a reader does with the page, in a real browser: judged by address, roles and text, not by pixels."""

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from page.conftest import chromium
from support.runs import DECODER, build_run

from decision_traces import TraceStore
from decision_traces.page.bundle import write_bundle
from decision_traces.page.serve import PageServer, listen

sync_api = pytest.importorskip("playwright.sync_api")
if chromium() is None:
    pytest.skip(
        "no Chromium (apt-get install chromium, or name one in DECISION_TRACES_CHROMIUM)", allow_module_level=True
    )

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
expect = sync_api.expect
expect.set_options(timeout=15_000)  # tests run side by side, on few cores


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=FLAGS.split())
        yield found
        found.close()


@pytest.fixture
def page(stranger, server: PageServer) -> Iterator:
    """The window of a reader who has opened the printed address before."""
    stranger.context.request.get(server.entrance)
    return stranger


@pytest.fixture
def stranger(browser) -> Iterator:
    """A window of its own, in which any request that leaves the machine and any error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(8000)
    left: list[str] = []
    errors: list[str] = []

    def only_here(route) -> None:
        local = urlsplit(route.request.url).hostname == "127.0.0.1"
        if not local:
            left.append(route.request.url)
        route.continue_() if local else route.abort()

    context.route("**/*", only_here)
    window = context.new_page()
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    yield window
    context.close()
    # Journeys that ask for what is not there, without a token, or of nobody.
    expected = ("404", "403", "net::ERR_CONNECTION_REFUSED")
    assert left == [] and [e for e in errors if not any(sign in e for sign in expected)] == []


def state(page) -> dict[str, str]:
    """Return the state that the address holds; it is written up to 350 ms after a change."""
    page.wait_for_timeout(400)
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def panel(page, name: str):
    return page.get_by_role("region", name=name, exact=True)


def key(run: Path) -> str:
    """Return the name of a run in addresses."""
    return run.name.replace(" ", "-")


def open_row(page, address: str, run: Path, row: int, **more: str) -> TraceStore:
    store = TraceStore(run)
    query = "&".join(f"{k}={v}" for k, v in {"run": key(run), "ex": store.example_id(row), **more}.items())
    page.goto(f"{address}?{query}")
    expect(panel(page, "Decision")).to_be_visible()
    return store


def test_the_page_opens_where_an_answer_nearly_was_right(page, address: str, demo_run: Path) -> None:
    page.goto(address)
    expect(page.get_by_text("✗ Wrong")).to_be_visible()
    tokens = TraceStore(demo_run).tokens
    wrong = tokens[~tokens["next_correct"]]
    assert state(page)["ex"] == wrong.loc[wrong["next_true_prob"].idxmax(), "example_id"]
    for name in ("Tokens", "Lens", "Decision", "Contributions", "Trajectories", "Attention"):
        expect(panel(page, name)).to_be_visible()
    expect(panel(page, "Tokens")).to_contain_text("leads")
    expect(page.get_by_role("navigation", name="examples").get_by_role("status")).to_have_text("12 of 12")


def test_filters_read_as_a_sentence_and_stand_in_the_address(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 0)
    page.get_by_role("button", name="wrong", exact=True).click()
    page.get_by_label("entropy from").fill("1.5")
    page.get_by_label("entropy from").press("Enter")
    expect(page.get_by_text("Only wrong and entropy ≥ 1.50 nats.")).to_be_visible()
    tokens = store.tokens
    left = int(((~tokens["next_correct"]) & (tokens["next_entropy"] >= 1.5)).sum())
    expect(page.get_by_text(f"{left} of 12")).to_be_visible()
    assert state(page)["only"] == "wrong" and state(page)["f.entropy"] == "1.5.."
    page.reload()
    expect(page.get_by_text(f"{left} of 12")).to_be_visible()
    page.get_by_role("button", name="show all").click()
    page.get_by_label("text contains").fill("the ")
    found = int(tokens["text"].str.lower().str.contains("the ").sum())
    expect(page.get_by_text(f"{found} of 12")).to_be_visible()
    page.get_by_label("sort by").select_option("-entropy")
    expect(page.get_by_role("listbox", name="list of examples").get_by_role("option").first).to_contain_text("H")
    assert state(page)["sort"] == "-entropy"


def test_the_keyboard_goes_everywhere(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 3)
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile(store.example_id(4)))
    expect(page.get_by_role("main")).to_have_attribute("aria-busy", "false")
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile(f"[?&]pos={store.tokens['next_pos'][4] - 1}(&|$)"))
    page.keyboard.press("d")
    expect(page).not_to_have_url(re.compile("[?&]pos="))
    page.keyboard.press("]")
    page.keyboard.press("[")
    expect(page).to_have_url(re.compile("[?&]layer="))
    page.keyboard.press("/")
    expect(page.get_by_label("text contains")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("sort by")).to_be_focused()
    page.get_by_role("button", name="help").click()
    expect(page.get_by_role("complementary", name="help")).to_contain_text("final norm and unembedding")
    page.go_back()
    expect(page).to_have_url(re.compile(store.example_id(3)))


def test_a_lens_cell_leads_to_its_layer(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 2)
    grid = panel(page, "Lens").get_by_role("application")
    grid.focus()
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(panel(page, "Lens")).to_contain_text("layer 2, after")
    page.keyboard.press("Enter")
    assert state(page)["layer"] == "2" and state(page)["pos"] == str(store.tokens["next_pos"][2] - 1)
    expect(page.get_by_label("layer", exact=True).last).to_have_value("2")
    panel(page, "Lens").get_by_role("button", name="KL").click()
    expect(panel(page, "Lens")).to_contain_text("KL divergence of the end from here (nats)")
    assert state(page)["stat"] == "kl"
    grid.hover(position={"x": 300, "y": 60})
    expect(page.locator(".tooltip tr")).to_have_count(10)


def test_another_competitor_changes_the_contributions(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 1)
    bars = panel(page, "Decision").get_by_role("button").filter(has=page.locator(".bar-track"))
    before = panel(page, "Contributions").locator(".sum b").inner_text()
    bars.nth(3).click()
    chosen = int(state(page)["vs"])
    tokens = store.tokens
    assert chosen in list(tokens["next_topk_ids"][1])
    expect(panel(page, "Contributions").locator(".sum b")).not_to_have_text(before)
    expect(bars.nth(3)).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(bars.nth(3)).to_have_attribute("aria-pressed", "true")


def test_a_bar_leads_to_its_heads_and_a_head_to_its_attention(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 0)
    chart = panel(page, "Contributions").locator(".chart")
    expect(chart).to_have_attribute("aria-label", re.compile("attn 3 "))
    box = chart.locator("svg").first.bounding_box()
    chart.locator("svg").first.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    layer = int(state(page)["layer"])
    heads = panel(page, "Contributions").get_by_role("button").filter(has_text="head ")
    expect(heads).to_have_count(4)
    sizes = [abs(float(text.split()[-1].replace("−", "-"))) for text in heads.all_inner_texts()]
    assert sizes == sorted(sizes, reverse=True)
    heads.first.click()
    head = int(state(page)["head"])
    expect(panel(page, "Attention")).to_contain_text(f"head {head}: each row looks at the columns")
    row = store.attn(0, layer=layer, head=head, trim=True)[store.tokens["next_pos"][0]]
    shown = panel(page, "Attention").locator(".looks button").first
    expect(shown).to_have_attribute("title", f"position {int(row.argmax())}")


def test_a_wrong_and_a_right_one_side_by_side_and_as_a_difference(page, address: str, demo_run: Path) -> None:
    page.goto(address)
    page.get_by_role("button", name="compare with a right one").click()
    expect(page.get_by_text("✓ Right")).to_be_visible()
    expect(page.get_by_text("✗ Wrong")).to_be_visible()
    expect(panel(page, "Lens").get_by_role("application")).to_have_count(2)
    assert state(page)["pin"].startswith("demo-run~")
    page.get_by_role("button", name="difference").click()
    expect(panel(page, "Lens").get_by_role("application")).to_have_count(1)
    expect(panel(page, "Contributions")).to_contain_text("this minus pinned")
    assert state(page)["cmp"] == "diff"
    page.reload()
    expect(panel(page, "Contributions")).to_contain_text("this minus pinned")
    page.keyboard.press("p")
    expect(page.get_by_role("button", name="difference")).to_have_count(0)
    assert "pin" not in state(page)


def test_data_and_python_of_a_panel(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 5, layer="1", head="2")
    panel(page, "Attention").get_by_role("button", name="python").click()
    script = page.get_by_role("dialog").locator("pre").inner_text()
    scope: dict = {}
    exec(script.replace("\nst.attn", "\nfound = st.attn"), scope)
    assert (scope["found"] == store.attn(5, layer=1, head=2, trim=True)).all()
    page.get_by_role("button", name="close").click()
    panel(page, "Lens").get_by_role("button", name="data").click()
    expect(page.get_by_role("dialog")).to_contain_text('"statistic": "prob"')
    expect(page.get_by_role("link", name="at its own address")).to_have_attribute(
        "href", f"api/{key(demo_run)}/e/5/lens/prob.json"
    )
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_questions_lens_by_choice_and_choices(page, address: str, question_run: Path, choice_run: Path) -> None:
    open_row(page, address, question_run, 1)
    expect(panel(page, "Lens by choice")).to_be_visible()
    expect(panel(page, "Decision").get_by_role("listitem")).to_have_count(5)
    store = open_row(page, address, choice_run, 1)
    expect(panel(page, "Lens by choice")).to_be_visible()
    choices = page.get_by_role("group", name="choice", exact=True).get_by_role("button")
    expect(choices).to_have_count(5)
    expect(choices.nth(int(store.tokens["pred_idx"][1]))).to_have_attribute("aria-pressed", "true")
    choices.nth(3).click()
    assert state(page)["choice"] == "3"
    expect(choices.nth(3)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("region", name="Lens", exact=True)).to_have_count(0)


def test_text_is_text_and_what_is_missing_is_said(page, address: str, bare_run: Path) -> None:
    page.on("dialog", lambda _: pytest.fail("a script of the data ran"))
    open_row(page, address, bare_run, 0)
    expect(page.get_by_role("listbox", name="tokens")).to_contain_text("script")
    expect(panel(page, "Attention")).to_contain_text("`attn` among the words of --capture")
    expect(panel(page, "Lens")).to_contain_text(f"decision-traces lens {bare_run} --all_positions")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script, nav img").count() == 0
    page.goto(f"{address}?run={key(bare_run)}&ex=nobody")
    expect(page.get_by_role("alert").first).to_contain_text("No example 'nobody'")


def test_the_printed_address_lets_in_and_no_other_does(stranger, server: PageServer, demo_run: Path) -> None:
    for closed in (server.url, f"{server.url}?token=guessed", f"{server.url}?ex=a"):
        assert stranger.goto(closed).status == 403
        expect(stranger.get_by_role("heading")).to_have_text("No token")
        expect(stranger.get_by_text("open it at the address that decision-traces view printed")).to_be_visible()
    example = TraceStore(demo_run).example_id(3)
    stranger.goto(f"{server.entrance}&ex={example}&layer=2")
    expect(panel(stranger, "Attention").get_by_role("application")).to_be_visible()
    assert state(stranger) == {"ex": example, "layer": "2"}  # no token in what is copied
    stranger.reload()
    expect(panel(stranger, "Attention").get_by_role("application")).to_be_visible()
    cookie = stranger.context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["value"]) == (True, "Strict", server.token)
    assert stranger.evaluate("document.cookie") == ""


def test_a_frame_that_keeps_no_cookies_shows_everything(stranger, server: PageServer) -> None:
    stranger.route("**/*", lambda route: route.continue_(headers=without_cookies(route.request)))
    stranger.goto(server.entrance)
    for name in ("Tokens", "Lens", "Decision", "Contributions", "Attention"):
        expect(panel(stranger, name)).to_be_visible()
    expect(panel(stranger, "Attention").get_by_role("application")).to_be_visible()


def without_cookies(request) -> dict[str, str]:
    return {name: value for name, value in request.all_headers().items() if name != "cookie"}


def test_a_run_that_is_replaced_is_said_and_the_new_one_shown(stranger, tmp_path: Path) -> None:
    for name, seed in (("run", 1), ("new", 2)):
        build_run(tmp_path / name, replace(DECODER, seed=seed))
    server, thread = served(tmp_path / "run", 0)
    stranger.goto(f"{server.entrance}&ex=tiny-validation-000000")
    grid = panel(stranger, "Attention").get_by_role("application")
    expect(grid).to_be_visible()
    (tmp_path / "run").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "run")
    stranger.get_by_label("layer", exact=True).last.select_option("0")
    said = stranger.get_by_role("status").filter(has_text=re.compile(r"was replaced at \d\d:\d\d; you see the new one"))
    expect(said).to_be_visible()
    expect(grid).to_be_visible()
    panel(stranger, "Attention").get_by_role("button", name="data").click()
    found = json.loads(stranger.get_by_role("dialog").locator("pre").inner_text())
    shown = np.asarray(found["attention"], np.float32)
    old, new = (TraceStore(tmp_path / f).attn(0, layer=0, head=found["head"], trim=True) for f in ("old", "run"))
    assert np.allclose(shown, new, atol=0.01) and not np.allclose(shown, old, atol=0.1)
    stopped(server, thread)


def test_a_stopped_server_is_said_and_asked_again(page, demo_run: Path) -> None:
    server, thread = served(demo_run, 0)
    page.context.request.get(server.entrance)
    store = open_row(page, server.url, demo_run, 1)
    stopped(server, thread)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("ArrowDown")
    said = page.get_by_role("alert").filter(has_text="Is decision-traces view still running?")
    expect(said.first).to_be_visible()
    page.wait_for_timeout(500)
    assert 0 < len(asked) < 40
    server, thread = served(demo_run, server.port)
    page.context.request.get(server.entrance)
    # The page asks again by itself after 5 s, and takes its button away: pressed if it is still there.
    page.evaluate("[...document.querySelectorAll('button')].find(b => b.textContent.trim() === 'try again')?.click()")
    expect(said).to_have_count(0)
    expect(panel(page, "Tokens")).to_contain_text("says")
    assert state(page)["ex"] == store.example_id(2)
    stopped(server, thread)


def served(run: Path, port: int) -> tuple:
    """Return a server of one's own, to be stopped within a test."""
    server = listen([run], port=port)
    return server, server.start()


def stopped(server, thread) -> None:
    server.stop()
    thread.join(10)
    server.socket.close()


def test_a_pointer_that_rests_does_not_break_the_next_example(page, address: str, demo_run: Path) -> None:
    lengths = TraceStore(demo_run).tokens["n_tokens"].to_numpy()
    row = int((lengths[:-1] - lengths[1:]).argmax())
    assert lengths[row] > lengths[row + 1]
    store = open_row(page, address, demo_run, row, fit="1")
    grid = panel(page, "Lens").get_by_role("application")
    grid.hover(position={"x": grid.bounding_box()["width"] - 32, "y": 60})  # the last column, before the padding
    expect(page.locator(".tooltip")).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(page).to_have_url(re.compile(store.example_id(row + 1)))
    expect(page.get_by_role("main")).to_have_attribute("aria-busy", "false")
    expect(panel(page, "Lens").get_by_role("application")).to_be_visible()
    expect(page.get_by_text("cannot be drawn")).to_have_count(0)


def test_two_are_compared_in_one_head(page, address: str, demo_run: Path) -> None:
    pinned = TraceStore(demo_run).example_id(6)
    for cmp in ("side", "diff"):
        open_row(page, address, demo_run, 2, pin=f"{key(demo_run)}~{pinned}", cmp=cmp)
        expect(panel(page, "Attention").get_by_role("application").first).to_be_visible()
        panel(page, "Attention").get_by_role("button", name="data").click()
        found = json.loads(page.get_by_role("dialog").locator("pre").inner_text())
        assert found["pinned"]["example_id"] == pinned
        assert [found["pinned"][k] for k in ("layer", "head")] == [found["this"][k] for k in ("layer", "head")]
        assert ("difference" in found) == (cmp == "diff")
        page.get_by_role("button", name="close").click()


def test_a_click_in_the_pinned_half_stays_there(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 2, pin=f"{key(demo_run)}~{TraceStore(demo_run).example_id(6)}")
    expect(panel(page, "Lens").get_by_role("application", name="the pinned example")).to_be_visible()
    halves = panel(page, "Decision").locator(".half")
    bars = halves.first.get_by_role("button").filter(has=page.locator(".bar-track"))
    bars.nth(3).click()
    expect(bars.nth(3)).to_have_attribute("aria-pressed", "true")
    chosen = bars.nth(3).locator(".bar-name").inner_text()
    assert re.fullmatch(f"{key(demo_run)}~[^~]*~~~[0-9]+", state(page)["pin"])
    assert "vs" not in state(page) and state(page)["ex"] == store.example_id(2)
    page.reload()
    expect(bars.and_(page.locator("[aria-pressed=true]"))).to_contain_text(chosen)


def test_what_the_address_asks_for_and_nobody_has_is_said(page, address: str, demo_run: Path) -> None:
    example = TraceStore(demo_run).example_id(0)
    page.goto(f"{address}?run=r9&ex={example}&layer=99&head=2&sort=fame&f.fame=1..2&pin=r7~a")
    said = page.get_by_role("status").filter(has_text="There is no run r9")
    for part in ("no layer 99", "fame", "no run r7"):
        expect(said).to_contain_text(part)
    expect(page.get_by_text("12 of 12")).to_be_visible()
    expect(panel(page, "Attention")).to_be_visible()
    page.get_by_role("button", name="dismiss").click()
    expect(said).to_have_count(0)
    assert state(page) == {"ex": example, "head": "2"}


def test_another_run_shows_an_example_that_it_has(page, address: str, demo_run: Path, bare_run: Path) -> None:
    store = open_row(page, address, demo_run, 4, pos="1", layer="3", sort="-entropy", vs="5")
    page.get_by_label("run", exact=True).select_option(key(bare_run))
    expect(page.get_by_text(f"has no example {store.example_id(4)}")).to_be_visible()
    expect(page.get_by_role("listbox", name="tokens")).to_be_visible()
    assert state(page)["run"] == key(bare_run) and state(page)["ex"] in list(TraceStore(bare_run).tokens["example_id"])
    assert not {"pos", "layer", "vs"} & set(state(page))
    page.get_by_label("run", exact=True).select_option(key(demo_run))
    expect(panel(page, "Trajectories")).to_be_visible()


def test_a_probable_token_of_a_lens_cell_becomes_the_competitor(page, address: str, demo_run: Path) -> None:
    open_row(page, address, demo_run, 1, layer="5")
    probable = panel(page, "Lens").get_by_role("group", name="most probable")
    other = probable.get_by_role("button", disabled=False, pressed=False).last
    name = other.inner_text()
    other.click()
    expect(probable.get_by_role("button", pressed=True)).to_have_text(name)
    expect(panel(page, "Decision").locator(".bar[aria-pressed=true]")).to_contain_text(name.split()[0])
    assert "vs" in state(page)


def test_any_candidate_becomes_the_target(page, address: str, demo_run: Path) -> None:
    open_row(page, address, demo_run, 1)
    lines = panel(page, "Decision").get_by_role("listitem")
    was = panel(page, "Contributions").locator("header .is-target").inner_text()
    for number in range(2):  # one that is neither, then the one it is compared with
        free = lines.filter(has=page.locator(".bar[aria-pressed=false]:not([disabled])"))
        line = free.last if number == 0 else lines.filter(has=page.locator(".bar[aria-pressed=true]"))
        name = line.locator(".bar-name").inner_text()
        line.get_by_role("button", name="the target").click()
        expect(panel(page, "Contributions").locator("header .is-target")).to_have_text(name.strip("␣"))
        aimed = lines.filter(has=page.locator(".bar-aim[aria-pressed=true]"))
        expect(aimed).to_have_count(1)
        expect(aimed).to_contain_text(name)
        expect(aimed.locator(".bar")).to_be_disabled()
        assert panel(page, "Contributions").locator("header .is-competitor").inner_text() != name.strip("␣")
    assert state(page)["target"].isdigit() and "vs" not in state(page)
    parts = page.locator(".sum b").first.inner_text()
    page.reload()
    expect(page.locator(".sum b").first).to_have_text(parts)
    page.keyboard.press("d")
    expect(panel(page, "Contributions").locator("header .is-target")).to_have_text(was)
    assert "target" not in state(page)


def test_the_lead_of_one_over_another_is_that_of_the_other_turned_round(page, address: str, demo_run: Path) -> None:
    open_row(page, address, demo_run, 1)
    total, sums = page.locator(".sum b").first, []
    expect(total).to_be_visible()
    sums.append(total.inner_text())
    decision = panel(page, "Decision")
    first = decision.locator(".bar.is-target .bar-name").inner_text()
    decision.locator("li", has=page.locator(".bar[aria-pressed=true]")).get_by_role("button", name="the target").click()
    decision.locator(".bar", has_text=first).first.click()
    expect(decision.locator(".bar[aria-pressed=true] .bar-name")).to_have_text(first)
    sums.append(total.inner_text())
    assert {sums[0][0], sums[1][0]} == {"+", "−"} and sums[0][1:] == sums[1][1:]


def test_the_same_question_in_two_runs(page, address: str, demo_run: Path, question_run: Path) -> None:
    pin = f"{key(question_run)}~{TraceStore(question_run).example_id(0)}"
    store = open_row(page, address, demo_run, 2, pin=pin)
    captions = panel(page, "Tokens").locator(".caption")
    expect(captions.first).to_contain_text(f"pinned {TraceStore(question_run).run_dir.name}")
    expect(captions.last).to_contain_text(f"this {demo_run.name}")
    expect(panel(page, "Lens").get_by_role("application")).to_have_count(2)
    page.get_by_role("button", name="difference").click()
    expect(panel(page, "Contributions")).to_contain_text("this minus pinned")
    expect(page.get_by_text("cannot be drawn")).to_have_count(0)
    panel(page, "Attention").get_by_role("button", name="data").click()
    found = json.loads(page.get_by_role("dialog").locator("pre").inner_text())
    assert found["pinned"]["example_id"] == TraceStore(question_run).example_id(0)
    assert found["this"]["example_id"] == store.example_id(2)
    page.reload()
    expect(captions.first).to_contain_text(f"pinned {question_run.name}")


def test_the_keyboard_alone_reaches_everything_in_few_steps(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 3)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="skip to the example")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    tokens = page.get_by_role("listbox", name="tokens")
    assert tokens.locator("[tabindex='0']").count() == 1
    tokens.locator("[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    chosen = tokens.get_by_role("option", selected=True)
    expect(page).to_have_url(re.compile(f"pos={store.tokens['next_pos'][3] - 1}"))
    expect(chosen).to_be_focused()
    rows = page.get_by_role("listbox", name="list of examples").get_by_role("option")
    expect(rows.first).to_have_attribute("aria-setsize", "12")
    rows.nth(3).focus()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(4)).to_be_focused()


def test_a_held_key_is_one_step_back(page, address: str, demo_run: Path) -> None:
    store = open_row(page, address, demo_run, 2)
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        page.wait_for_timeout(60)
    expect(page).to_have_url(re.compile(f"ex={store.example_id(6)}(&|$)"))
    page.go_back()
    expect(page).to_have_url(re.compile(f"ex={store.example_id(2)}(&|$)"))


def test_keys_pressed_before_the_list_is_here_are_not_lost(page, address: str, demo_run: Path) -> None:
    held: list = []
    page.route("**/rows/0.json", lambda route: held.append(route))  # a built-in is not taken
    store = open_row(page, address, demo_run, 2)
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(page).to_have_url(re.compile(f"ex={store.example_id(2)}(&|$)"))
    assert len(held) == 1
    held[0].continue_()
    expect(page).to_have_url(re.compile(f"ex={store.example_id(4)}(&|$)"))


def test_a_bundle_shows_the_same_from_any_file_server(page, demo_run: Path, tmp_path: Path) -> None:
    write_bundle([demo_run], tmp_path / "site", limit=4)
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = open_row(page, f"http://127.0.0.1:{server.server_port}/", demo_run, 2)
    expect(page.get_by_text("4 of 4")).to_be_visible()
    expect(panel(page, "Attention").get_by_role("application")).to_be_visible()
    expect(panel(page, "Contributions").locator(".sum b")).to_be_visible()
    page.get_by_label("text contains").fill(store.text(1)[-12:])
    expect(page.get_by_text("1 of 4")).to_be_visible()
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""
