"""One run as the page sees it: what it is, what it has, and what is missing with the command that makes it."""

import re
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from decision_traces.errors import NotCapturedError, TraceError
from decision_traces.page.columns import Figure, list_figures, read_some
from decision_traces.schema import ANALYSIS_DIR, HEAD, LAYER, META_FILE
from decision_traces.store.reader import TraceStore

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr

    from decision_traces.store.arrays import StoredArray

ROWS_PER_PART: Final = 50
VALUES_PER_PART: Final = 200_000
RACE_FILE: Final = "choice_race.parquet"
_LISTED: Final = ("example_id", "text", "question", "next_true_token", "next_pred_token", "answerKey", "pred_label")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_CACHE: Final = 32
_CACHE_BYTES: Final = 48 << 20
Made = TypeVar("Made")


def opened(run_dirs: Sequence[Path]) -> "list[PageRun]":
    """Open runs under names that stay the same whichever others are opened beside them, so that a copied link does.

    Raises:
        RunError: One of the folders is no complete run.
    """
    runs: dict[str, PageRun] = {}
    for run_dir in run_dirs:
        run = PageRun("", run_dir)
        name = _UNSAFE.sub("-", run.run_id).strip("-.") or "run"
        run.key = next(key for key in _numbered(name) if key not in runs)
        runs[run.key] = run
    return list(runs.values())


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, and then as often as it takes the name with a number."""
    yield name
    yield from (f"{name}.{number}" for number in count(2))


class PageRun:
    """A run folder behind the page. Everything is read on first use, and again once the analyses have changed."""

    def __init__(self, key: str, run_dir: Path) -> None:
        """Open a run.

        Args:
            key: Its name in URLs.
            run_dir: The folder.

        Raises:
            RunError: There is no complete run.
        """
        self.key = key
        self.store = TraceStore(run_dir)
        self.run_dir = self.store.run_dir
        self._lock = threading.Lock()
        self._cache: OrderedDict[Any, Any] = OrderedDict()
        self._seen = self.identity()

    def identity(self) -> tuple[int, ...]:
        """Return what changes when the run or its analyses do: when these files were written, and their sizes."""
        analysis = self.run_dir / ANALYSIS_DIR
        files = [self.run_dir / META_FILE]
        if analysis.is_dir():
            files += sorted(p for p in analysis.iterdir() if not p.name.startswith("."))
        files += [p / "zarr.json" for p in files if p.suffix == ".zarr"]
        stats = [p.stat() for p in files if p.exists()]
        return tuple(n for s in stats for n in (s.st_mtime_ns, s.st_size))

    def refresh(self) -> tuple[int, ...]:
        """Forget what was read of the analyses if they changed, and return the identity."""
        now = self.identity()
        if now != self._seen:
            with self._lock:
                self._cache.clear()
            for name in ("figures", "listed"):
                self.__dict__.pop(name, None)
            self._seen = now
        return now

    def held(self, key: Any) -> Any:
        """Return what was made under a key lately; None where nothing was."""
        with self._lock:
            return self._cache.get(key)

    def kept(self, key: Any, make: Callable[[], Made]) -> Made:
        """Return what was made under a key lately, or make it."""
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                found: Made = self._cache[key]
                return found
        made = make()
        with self._lock:
            self._cache[key] = made
            held = sum(getattr(value, "nbytes", 0) for value in self._cache.values())
            while len(self._cache) > 1 and (len(self._cache) > _CACHE or held > _CACHE_BYTES):
                held -= getattr(self._cache.popitem(last=False)[1], "nbytes", 0)
        return made

    @cached_property
    def listed(self) -> "pa.Table":
        """The columns that the list shows."""
        return read_some(self.run_dir, _LISTED)

    @property
    def run_id(self) -> str:
        """The run's own name, or that of its folder."""
        return str(self.store.meta.get("run_id") or self.run_dir.name)

    # What the run is ---------------------------------------------------------------------------------------

    @cached_property
    def objective(self) -> str:
        """What the run is about: next_token, csqa_choice, multiple_choice and so on."""
        return str(self.store.meta.get("objective") or "")

    @cached_property
    def figures(self) -> list[Figure]:
        """The figures of the example list."""
        return list_figures(self.run_dir, self.objective)

    @property
    def by_choice(self) -> bool:
        """Whether every choice has an inner path of its own."""
        return self.store.n_choices is not None and self.store.arch == "enc"

    @property
    def attention_name(self) -> str:
        """The self-attention of the run's main side."""
        return "enc_mc_attn" if self.by_choice else f"{self.store.sides[0]}_self_attn"

    @property
    def attention(self) -> "StoredArray | None":
        """The array of attention, or None."""
        return self.store.array(self.attention_name) if self.store.has(self.attention_name) else None

    @property
    def races(self) -> bool:
        """Whether there are choices that can be followed through the layers."""
        return self.by_choice or self.objective == "csqa_choice"

    @property
    def decides(self) -> bool:
        """Whether a decoder makes one decision an example, so that lens and contributions are possible."""
        return self.objective in {"next_token", "csqa_choice", "target"} and "dec" in self.store.sides

    def grid(self, name: str) -> "zarr.Group | None":
        """Return a group of the analysis folder, None where it was not made."""
        from decision_traces.analysis.grids import open_grid

        return self.kept(("grid", name), lambda: open_grid(self.run_dir, name))

    def words(self) -> dict[int, str]:
        """Return the texts of token ids."""
        from decision_traces.analysis.grids import read_words

        return self.kept("words", lambda: read_words(self.run_dir))

    def row(self, example_id: str) -> int:
        """Return the row of an example.

        Raises:
            UnknownExampleError: There is none.
        """
        return self.store.row(example_id)

    # What is missing ---------------------------------------------------------------------------------------

    def command(self, name: str, *flags: str) -> str:
        """Return a command of this package on this run, as typed into a shell."""
        return " ".join(["decision-traces", name, shlex.quote(str(self.run_dir)), *flags])

    def not_captured(self, *names: str) -> str:
        """Return the sentence that says what was not captured and which flag adds it; empty where all is there."""
        for name in names:
            try:
                self.store.array(name)
            except NotCapturedError as error:
                return str(error)
            except TraceError as error:
                return str(error)
        return ""

    def missing(self) -> dict[str, dict[str, str]]:
        """Return, by panel, why it is empty and the command that fills it (empty where no command can)."""
        found = {}
        if self.attention is None:
            found["attention"] = {"why": self.not_captured(self.attention_name), "command": ""}
        if self.grid("lens.zarr") is None:
            found["lens"] = self._lens()
        if self.grid("contributions.zarr") is None:
            found["contributions"] = self._contributions()
        if self.races and not (self.run_dir / ANALYSIS_DIR / RACE_FILE).is_file():
            why = self.not_captured("enc_mc_hidden") if self.by_choice else self._no_states()
            found["race"] = {
                "why": why or "The choices have not been followed through the layers yet.",
                "command": "" if why else self.command("lens"),
            }
        return found

    def _no_states(self) -> str:
        """Return why a decoder's states cannot be followed through its layers; empty where they can."""
        there = self.store.has("dec_hidden") or self.store.has("dec_res_pre_attn")
        return "" if there else self.not_captured("dec_hidden")

    def _lens(self) -> dict[str, str]:
        if not self.decides:
            return {"why": "A lens needs a decoder that predicts tokens; this run has none.", "command": ""}
        if self._no_states():
            return {"why": self._no_states(), "command": ""}
        return {
            "why": "The lens has not been computed for this run yet.",
            "command": self.command("lens", "--all_positions"),
        }

    def _contributions(self) -> dict[str, str]:
        if not self.decides and not self.by_choice:
            return {"why": "Contributions need a decision; this run makes none.", "command": ""}
        why = "" if self.by_choice else self.not_captured("dec_res_embed", "dec_res_post_attn", "dec_res_post_mlp")
        if why:
            return {"why": why, "command": ""}
        flags = () if self.by_choice else ("--all_positions",)
        return {
            "why": "Contributions have not been computed for this run yet.",
            "command": self.command("attribution", *flags),
        }

    def only_decisions(self, name: str) -> str:
        """Return the command that adds all positions to a group that has the decisions' alone, or an empty text."""
        grid = self.grid(name)
        if grid is None or grid.attrs.get("all_positions") or grid.attrs.get("of") == "choice":
            return ""
        if self.store.dims(self.store.sides[0]).positions != "all":
            return ""  # the run keeps no others
        return self.command("lens" if name == "lens.zarr" else "attribution", "--all_positions")

    # Sizes -------------------------------------------------------------------------------------------------

    def attention_axes(self) -> dict[str, Any] | None:
        """Return the layers and heads that attention was kept of."""
        array = self.attention
        if array is None:
            return None
        return {"array": array.spec.name, "layers": list(array.numbers(LAYER)), "heads": list(array.numbers(HEAD))}
