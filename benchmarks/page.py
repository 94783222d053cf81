"""How quickly the page answers: server start, first paint, clicks, the list of a long run; sizes and memory.

    python -m benchmarks.page RUN [--list_run RUN] [--clicks 60] [--json FILE]

RUN is opened as `decision-traces view` opens it, in a process of its own, and looked at with a real Chromium (the one
that DECISION_TRACES_CHROMIUM names, or `chromium` on the path). A click is what the browser asks for after it, one
request after the other on a connection that is kept, as browsers do, timed at the client; `--list_run` is a run of many
examples whose list is filtered and sorted.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.page.app import STATIC

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
LIMITS = {
    "server up (s)": 1.0,
    "first paint after that (s)": 1.0,
    "click, median (ms)": 15.0,
    "click, p95 (ms)": 60.0,
    "largest response (MB)": 1.048576,
    "server memory (MB)": 300.0,
    "page on disk (MB)": 0.5,
    "list shown (ms)": 1000.0,
    "list filtered (ms)": 200.0,
    "list sorted (ms)": 200.0,
    "list searched (ms)": 200.0,
}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    list_run: Path | None = None
    """A run of many examples, for the list."""
    clicks: int = 60
    """Clicks of each kind."""
    json: Path | None = None
    """Also write the figures here."""


@contextmanager
def served(run: Path) -> Iterator[tuple[str, float, psutil.Process]]:
    """Serve a run in a process of its own; yield its address, how long it took to answer, and the process."""
    code = "from decision_traces.cli.main import main; main()"
    command = [sys.executable, "-c", code, "view", str(run), "--no_browser", "--quiet"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url) as answer:
            answer.read()
        yield url, time.perf_counter() - began, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


class Client:
    """One kept connection to the server of an address, with the token that the address brings."""

    def __init__(self, url: str) -> None:
        """Connect."""
        parts = urlsplit(url)
        self._connection = HTTPConnection(parts.netloc)
        self._headers = {"X-Token": token} if (token := parts.query.removeprefix("token=")) else {}

    def asked(self, path: str) -> tuple[float, int, bytes]:
        """Return milliseconds, size and body of one answer."""
        began = time.perf_counter()
        self._connection.request("GET", f"/api/{path}", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, body)
        return 1000 * (time.perf_counter() - began), len(body), body


class Clicks:
    """What the browser asks for after a click, as `page/src/side.ts` and the panels do."""

    def __init__(self, url: str) -> None:
        """Read what the run is."""
        self.client = Client(url)
        self.key = json.loads(self.client.asked("runs.json")[2])["runs"][0]["key"]
        self.meta: dict[str, Any] = json.loads(self.client.asked(f"{self.key}/meta.json")[2])
        self.largest = 0

    def get(self, *paths: str) -> tuple[float, list[bytes]]:
        """Ask for some paths, one after the other."""
        total, bodies = 0.0, []
        for path in paths:
            took, size, body = self.client.asked(f"{self.key}/{path}")
            self.largest = max(self.largest, size)
            total += took
            bodies.append(body)
        return total, bodies

    def example(self, row: int) -> float:
        """Click an example of the list."""
        took, bodies = self.get(f"e/{row}/c0/tokens.json", f"e/{row}/outcomes.json")
        tokens = json.loads(bodies[0])
        position = (tokens["decision"] or {}).get("pos") or 0
        if self.meta["lens"]:
            more, bodies = self.get(f"e/{row}/lens.json")
            head = json.loads(bodies[0])
            blocks = -(-head["depths"] * len(head["pos"]) // head["states_per_block"])
            took += more + self.get(*(f"e/{row}/lens/{block}.bin" for block in range(blocks)))[0]
        return took + self.position(row, position) + self.layer(row, self.meta["L"] - 1)

    def position(self, row: int, position: int) -> float:
        """Click a token, or a lens cell."""
        return self.get(f"e/{row}/contributions/{position}.json")[0] if self.meta["contributions"] else 0.0

    def layer(self, row: int, layer: int) -> float:
        """Click a bar, or another layer."""
        if not self.meta["attention"]:
            return 0.0
        return self.get(f"e/{row}/c0/attn/{layer}/thumbs.u8")[0] + self.head(row, layer, 0)

    def head(self, row: int, layer: int, head: int) -> float:
        """Click a head."""
        if not self.meta["attention"]:
            return 0.0
        return self.get(f"e/{row}/c0/attn/{layer}/{head}.u8", f"e/{row}/c0/attn/{layer}/{head}/0.f16")[0]


def click(url: str, times: int) -> tuple[list[float], int]:
    """Return the milliseconds of clicks on all kinds of elements, and the largest response."""
    clicks, dice, took = Clicks(url), random.Random(0), []
    for _ in range(times):
        row, layer = dice.randrange(clicks.meta["n"]), dice.randrange(clicks.meta["L"])
        took.append(clicks.example(row))
        took += [clicks.layer(row, layer), clicks.head(row, layer, dice.randrange(clicks.meta["H"]))]
        tokens = json.loads(clicks.get(f"e/{row}/c0/tokens.json")[1][0])
        if clicks.meta["contributions"] and clicks.meta["contributions"]["all_positions"]:
            took.append(clicks.position(row, dice.randrange(tokens["n_tokens"])))
    return took, clicks.largest


WAIT = """async ([act, what]) => {
  const shown = () => document.querySelector(what)?.textContent;
  const before = shown(), began = performance.now();
  eval(act);
  while (shown() === before && performance.now() - began < 5000) await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def paint(browser: Any, url: str) -> float:
    """Return the seconds from asking for the page to its first contentful paint."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(url)
    page.get_by_role("region", name="Decision").wait_for()
    entries = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)")
    page.close()
    return entries[0] / 1000


def listing(browser: Any, url: str) -> dict[str, float]:
    """Return the milliseconds of work on the list."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    began = time.perf_counter()
    page.goto(url)
    page.locator(".item-text").first.wait_for()
    shown = 1000 * (time.perf_counter() - began)
    page.get_by_role("region", name="Decision").wait_for()
    page.wait_for_timeout(500)
    button = "[...document.querySelectorAll('.filters button')].find(b => b.textContent === 'wrong').click()"
    sort = (
        "const s = document.querySelectorAll('.filters select'); const l = s[s.length - 1]; l.value = '-entropy'; "
        "l.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    search = (
        "const i = document.getElementById('search'); i.value = 'the'; "
        "i.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    first = "document.querySelector('.list').scrollTop = 0; "
    figures = {"list shown (ms)": shown}
    steps = {
        "list sorted (ms)": (sort, ".item"),
        "list filtered (ms)": (button, ".count"),
        "list searched (ms)": (search, ".count"),
    }
    for name, (act, shown_in) in steps.items():
        page.wait_for_timeout(700)  # nobody types while the rows of the last click are still coming in
        figures[name] = page.evaluate(WAIT, [first + act, shown_in])
    page.close()
    return figures


def measure(settings: Settings) -> dict[str, float]:
    """Return all figures."""
    from playwright.sync_api import sync_playwright

    figures: dict[str, float] = {}
    executable = os.environ.get("DECISION_TRACES_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        with served(settings.run) as (url, up, process):
            figures |= {"server up (s)": up, "first paint after that (s)": paint(browser, url)}
            took, largest = click(url, settings.clicks)
            figures["click, median (ms)"] = statistics.median(took)
            figures["click, p95 (ms)"] = statistics.quantiles(took, n=20)[-1]
            figures["largest response (MB)"] = largest / 1e6
            figures["server memory (MB)"] = process.memory_info().rss / 1e6
        if settings.list_run is not None:
            with served(settings.list_run) as (url, _, _):
                figures |= listing(browser, url)
        browser.close()
    figures["page on disk (MB)"] = sum(p.stat().st_size for p in STATIC.rglob("*") if p.is_file()) / 1e6
    return figures


def main() -> None:
    """Measure, print, and fail where a limit is not kept."""
    settings = tyro.cli(Settings, use_underscores=True)
    figures = measure(settings)
    table = Table(title=f"The page of {settings.run.name}", title_justify="left")
    for heading in ("figure", "measured", "at most"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, limit in LIMITS.items():
        if name in figures:
            style = "red" if figures[name] > limit else None
            table.add_row(name, f"{figures[name]:.3g}", f"{limit:.3g}", style=style)
    Console().print(table)
    if settings.json is not None:
        settings.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(figures[name] > limit for name, limit in LIMITS.items() if name in figures))


if __name__ == "__main__":
    main()
