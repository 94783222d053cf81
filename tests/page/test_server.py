"""The server as strangers, slow clients and a run that changes under it meet it."""

import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
from faults.processes import until
from starlette.testclient import TestClient
from support.runs import DECODER, build_run

from decision_traces.cli import view
from decision_traces.errors import DamagedRunError, UsageError
from decision_traces.page import patience, resources
from decision_traces.page.app import STATIC, create_app
from decision_traces.page.guard import Entry
from decision_traces.page.runs import PageRun
from decision_traces.page.serve import PageServer, listen
from decision_traces.store.files.results_place import ResultsPlace

TOLD = ("content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "run", replace(DECODER, seed=1))
    return tmp_path / "run"


def asking(run: Path, entry: Entry | None = None) -> TestClient:
    app = create_app([PageRun("r", ResultsPlace(run))], entry or Entry())
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@contextmanager
def serving(run: Path) -> Iterator[PageServer]:
    server = listen([run], port=0)
    thread = server.start()
    with urlopen(server.entrance) as answer:
        assert answer.status == 200
    yield server
    server.stop()
    thread.join(10)
    server.socket.close()


# Who is let in -------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_of_a_run_is_answered(run: Path) -> None:
    client = asking(run, Entry(token="right", port=8377))
    for path in ("/api/runs.json", "/api/r/meta.json", "/api/r/e/0/c0/tokens.json", "/api/nothing"):
        for asked in ({}, {"params": {"token": "wrong"}}, {"headers": {"X-Token": "righ"}}):
            answer = client.get(path, **asked)
            assert answer.status_code == 403 and answer.json()["error"].endswith("decision-traces view printed.")
        assert client.get(path, headers={"Cookie": "decision-traces-8378=right"}).status_code == 403
    page = client.get("/")
    assert page.status_code == 403 and "No token" in page.text and 'id="page"' not in page.text
    assert not client.cookies


def test_the_token_lets_in_and_is_kept_as_a_cookie_of_this_port(run: Path) -> None:
    client = asking(run, Entry(token="right", port=8377))
    assert client.get("/api/runs.json", headers={"X-Token": "right"}).status_code == 200
    client.cookies.clear()
    answer = client.get("/?token=right")
    assert answer.status_code == 200
    assert answer.headers["set-cookie"] == "decision-traces-8377=right; Path=/; HttpOnly; SameSite=Strict"
    again = client.get("/api/r/meta.json")
    assert again.status_code == 200 and "set-cookie" not in again.headers


def test_a_server_has_a_token_of_its_own_unless_told_otherwise(run: Path, capsys) -> None:
    servers = [listen([run], port=0) for _ in range(2)] + [listen([run], port=0, with_token=False)]
    tokens = [server.token for server in servers]
    assert len(set(tokens)) == 3 and tokens[2] is None and all(len(t or "") >= 22 for t in tokens[:2])
    assert servers[0].entrance == f"http://127.0.0.1:{servers[0].port}/?token={tokens[0]}"
    assert servers[2].entrance == servers[2].url
    for server in servers:
        server.socket.close()
    with pytest.raises(UsageError, match="--no_token"):
        listen([run], host="0.0.0.0", with_token=False)
    with pytest.raises(SystemExit) as stopped:
        view.main([str(run), "--host", "0.0.0.0", "--no_token"])
    assert stopped.value.code == 1 and capsys.readouterr().err.count("\n") == 1


def test_every_answer_has_the_headers(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(resources, "row", lambda *_: 1 / 0)
    stranger, client = (asking(run, Entry(token="right")) for _ in range(2))
    client.get("/?token=right")
    statuses = [
        client.get("/api/r/meta.json"),
        client.get("/api/r/rows/x.json"),
        client.get("/api/r/meta.json", headers={"Host": "evil.example"}),
        stranger.get("/api/r/meta.json"),
        client.get("/api/nothing/at/all"),
        client.post("/api/r/meta.json"),
        client.get("/api/r/row?example=a"),
        stranger.get("/"),
    ]
    assert [answer.status_code for answer in statuses] == [200, 400, 400, 403, 404, 405, 500, 403]
    for answer in statuses:
        assert all(name in answer.headers for name in TOLD), answer.status_code
        assert answer.url.path == "/" or "error" in answer.json() or answer.status_code == 200


def test_what_is_no_request_is_answered_with_the_headers(run: Path) -> None:
    with serving(run) as server, socket.create_connection(("127.0.0.1", server.port)) as asking:
        asking.sendall(b"NO REQUEST AT ALL\r\n\r\n")
        answer = asking.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 400 ") and json.loads(answer.split("\r\n\r\n")[1])["error"]
    assert all(f"\r\n{name}: " in answer for name in TOLD)


# Connections ---------------------------------------------------------------------------------------------------


def test_answers_do_not_wait_to_be_sent(run: Path) -> None:
    server = listen([run], port=0)
    with socket.create_connection(("127.0.0.1", server.port)), server.socket.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    server.socket.close()


def test_half_sent_requests_are_closed_and_keep_nobody_waiting(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.5)
    halves = (
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na",
    )
    with serving(run) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
        for number, one in enumerate(slow):
            one.sendall(halves[number % len(halves)])
        with urlopen(f"{server.url}api/run/meta.json?token={server.token}") as answer:
            assert answer.status == 200
        for one in slow:
            one.settimeout(10)
            assert closed(one)


def test_a_request_that_trickles_in_is_closed_as_well(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.4)
    with serving(run) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(0.1)
        sent = 0
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for sent in range(100):  # noqa: B007
                slow.sendall(b"G")
                time.sleep(0.1)
        assert sent < 30


def test_answers_that_nobody_takes_are_given_up_and_a_slow_reader_gets_all(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.4)
    with serving(run) as server:
        asked = f"GET /assets/page.js HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Token: {server.token}\r\n"
        many = (f"{asked}\r\n" * 30 + f"{asked}Connection: close\r\n\r\n").encode()  # more than the system buffers
        with (
            socket.create_connection(("127.0.0.1", server.port)) as deaf,
            socket.create_connection(("127.0.0.1", server.port)) as slow,
        ):
            deaf.sendall(many)
            slow.sendall(many)
            taken = 0
            while part := slow.recv(1 << 17):
                taken += len(part)
                time.sleep(0.01)
            assert taken > 31 * (STATIC / "assets" / "page.js").stat().st_size
            assert server._server is not None
            until(lambda: not server._server.server_state.connections, 10)


def closed(connection: socket.socket) -> bool:
    """Return whether the other side closes, whatever it answers first; a timeout raises."""
    with connection:
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    return True


# A run that changes --------------------------------------------------------------------------------------------


def exchange(run: Path, new: Path) -> None:
    run.rename(run.with_name("old"))
    new.rename(run)


@pytest.fixture
def new(run: Path) -> Path:
    build_run(run.with_name("new"), replace(DECODER, seed=2))
    return run.with_name("new")


PATHS = ("meta.json", "rows/0.json", "e/0/c0/tokens.json", "e/0/c0/attn/0/0.u8", "e/0/c0/attn/1/thumbs.u8")


def test_a_replaced_run_is_read_anew_and_its_tags_are_other(run: Path, new: Path) -> None:
    client, other = asking(run), asking(new)
    before = {path: client.get(f"/api/r/{path}") for path in PATHS}
    expected = {path: other.get(f"/api/r/{path}").content for path in PATHS[1:]}
    exchange(run, new)
    for path in PATHS:
        tag = before[path].headers["etag"]
        after = client.get(f"/api/r/{path}", headers={"If-None-Match": tag})
        assert after.status_code == 200 and after.headers["etag"] != tag
        assert after.headers["x-run"].split(".")[0] != before[path].headers["x-run"].split(".")[0]
        assert path == "meta.json" or after.content == expected[path]


@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_across_an_exchange_is_made_again_once(run: Path, new: Path, monkeypatch, times: int) -> None:
    client, expected, made = asking(run), asking(new).get("/api/r/e/0/c0/attn/0/0.u8").content, []
    whole = resources.head_drawn

    def slow(page: PageRun, *asked: int) -> resources.Resource:
        found = whole(page, *asked)  # of the run as it was
        if len(made) < times:
            made.append(found.body)
            exchange(run, new)
            run.with_name("old").rename(new)
        return found

    monkeypatch.setattr(resources, "head_drawn", slow)
    answer = client.get("/api/r/e/0/c0/attn/0/0.u8")
    assert made[0] != expected
    if times == 1:
        assert answer.status_code == 200 and answer.content == expected
    else:
        assert answer.status_code == 409 and "is being replaced" in answer.json()["error"]


def test_a_moment_without_a_run_is_waited_for(run: Path, new: Path) -> None:
    client = asking(run)
    client.get("/api/r/meta.json")
    run.rename(run.with_name("old"))
    threading.Timer(0.2, new.rename, (run,)).start()
    assert client.get("/api/r/e/0/c0/attn/0/0.u8").status_code == 200


def test_a_run_that_is_gone_is_a_sentence(run: Path) -> None:
    client = asking(run)
    shutil.rmtree(run)
    answer = client.get("/api/r/meta.json")
    assert answer.status_code == 422 and "is gone" in answer.json()["error"]
    assert client.get("/api/runs.json").status_code == 200


# Damage --------------------------------------------------------------------------------------------------------


def listed(run: Path) -> dict[str, bytes | None]:
    """Return what the list shows, None where it is an error of ours instead."""
    page = PageRun("r", ResultsPlace(run))
    asked: dict[str, Callable[[], resources.Resource]] = {
        "rows": lambda: resources.rows(page, 0),
        "search": lambda: resources.search(page, "a"),
        "meta": lambda: resources.meta(page),
        **{name: partial(resources.column, page, name, 0) for name in ("correct", "entropy", "margin", "n_tokens")},
    }
    return {name: answered(make) for name, make in asked.items()}


def answered(make: Callable[[], resources.Resource]) -> bytes | None:
    try:
        return make().body
    except DamagedRunError:
        return None


def flipped(path: Path, seed: int) -> Callable[[], object]:
    """Turn one bit of a file round; return what turns it back."""
    content, dice = path.read_bytes(), random.Random(seed)
    changed = bytearray(content)
    changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(changed)
    return lambda: path.write_bytes(content)


def test_the_list_shows_no_flipped_bit(run: Path) -> None:
    whole = listed(run)
    assert None not in whole.values()
    for seed in range(200):
        back = flipped(run / "tokens.parquet", seed)
        assert all(found in {None, whole[name]} for name, found in listed(run).items()), seed
        back()
    assert listed(run) == whole


HARMS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
}
ASKED = ("meta.json", "rows/0.json", "e/0/c0/tokens.json", "e/0/outcomes.json", "e/0/lens.json", "e/0/c0/attn/0/0.u8")


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_no_damaged_or_vanished_file_is_a_fault_of_the_server(run: Path, harm: Callable[[Path], object]) -> None:
    attention = [path for path in sorted((run / "dec_self_attn.zarr" / "attn").rglob("*")) if path.is_file()]
    files = [run / "tokens.parquet", run / "manifest.json", *attention[::3]]
    for path in files:
        content, client = path.read_bytes(), asking(run)
        harm(path)
        answers = {asked: client.get(f"/api/r/{asked}") for asked in ASKED}
        assert all(a.status_code < 500 and (a.status_code == 200 or a.json()["error"]) for a in answers.values()), path
        if path in attention:  # one panel says so, the rest works
            assert [answers[asked].status_code for asked in ASKED[1:3]] == [200, 200]
        path.write_bytes(content)
