"""Pictures of the page in all its states, to look at.

    python page/screenshots.py FOLDER RUN [RUN ...]

Each state of the first run, and the others as they open, in two window widths, dark and light. The README's picture is
`opened-1280-light.png` of the demo run.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import sync_playwright

from decision_traces.page.serve import PageServer, listen

WIDTHS: Final = (1280, 1920)
SCHEMES: Final = ("light", "dark")
FLAGS: Final = ("--no-sandbox", "--disable-dev-shm-usage")


def states(server: PageServer) -> dict[str, str]:
    """Return addresses to look at, by name."""
    first, keys = server.runs[0].store, [run.key for run in server.runs]
    one, other = (first.example_id(row) for row in (0, min(5, first.n - 1)))
    found = {
        "opened": "",
        "first_token": f"?ex={one}&pos=0",
        "filtered": f"?ex={one}&only=wrong&sort=-entropy",
        "nothing_found": f"?ex={one}&q=zzzzzz",
        "no_such_example": "?ex=nobody",
        "lens_entropy_fit": f"?ex={one}&stat=entropy&fit=1",
        "side_by_side": f"?ex={one}&pin={keys[0]}~{other}",
        "difference": f"?ex={one}&pin={keys[0]}~{other}&cmp=diff",
    }
    for key in keys[1:]:
        found[f"run_{key}"] = f"?run={key}"
    return {name: server.url + query for name, query in found.items()}


def shoot(page: Any, address: str, file: Path) -> None:
    """Take one picture, once nothing is being waited for."""
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(400)
    page.screenshot(path=file)


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    server = listen(args.runs, port=0, with_token=False)
    server.start()
    args.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
                for name, address in states(server).items():
                    shoot(page, address, args.folder / f"{name}-{width}-{scheme}.png")
                page.close()
        browser.close()
    server.stop()


if __name__ == "__main__":
    main()
