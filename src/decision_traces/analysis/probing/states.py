"""The state at the position of every example's answer, depth by depth: what probes read."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.requirements import need_whole
from decision_traces.errors import UsageError
from decision_traces.store import TraceStore

_WHAT: Final = "a probe at every depth"


@dataclass(frozen=True, slots=True)
class AnswerStates:
    """Where the states of a run lie at which its answers are given.

    Attributes:
        store: The run.
        stream: Array and layer of every depth: 0 is the embedding, l the output of layer l.
        position: (n, ...) token position of each example (of each of its choices).
        is_there: (n,) whether it has one.
        choice: (n,) the choice that was picked, where a run has choices.
    """

    store: TraceStore
    stream: tuple[tuple[str, int], ...]
    position: Int64[np.ndarray, "n ..."]
    is_there: Bool[np.ndarray, " n"]
    choice: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        """Return the number of depths."""
        return len(self.stream)

    def at(self, depth: int, rows: Int64[np.ndarray, " m"]) -> Float64[np.ndarray, "m d_model"]:
        """Return the states of some examples at one depth.

        Raises:
            SelectionError: The run does not keep the position at which some answer is given.
        """
        name, layer = self.stream[depth]
        states = self.store.gather(name, layer=layer, position=self.position)[rows]
        if self.choice is not None:
            states = states[np.arange(len(rows)), self.choice[rows]]
        at_depth: np.ndarray = states.astype(np.float64)
        return at_depth


def answer_states(store: TraceStore) -> AnswerStates:
    """Return where the answers of a run are given.

    That is at `next_pos`, or `answer_pos` in decoder runs over multiple choice; in encoder runs at the first token (of
    the choice that was picked). A run that captured only `resid` has the same states, but for the last, which is
    then the one before the model's final norm.

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        UsageError: It does not keep all layers, or has no answer at one token.
    """
    kinds = ("enc_mc", "enc") if store.sides[0] == "enc" and store.arch != "encdec" else ("dec",)
    streams = [(kind, name) for kind in kinds for name in (f"{kind}_hidden", f"{kind}_res_pre_attn")]
    kind, name = next((s for s in streams if store.has(s[1])), (kinds[-1], f"{kinds[-1]}_hidden"))
    need_whole(store.array(name), _WHAT)
    stream = [(name, depth) for depth in range(store.L + name.endswith("hidden"))]
    if not name.endswith("hidden"):
        need_whole(store.array(f"{kind}_res_post_mlp"), _WHAT)
        stream.append((f"{kind}_res_post_mlp", store.L - 1))
    if kind != "dec":
        choice = _whole(store, "pred_idx") if kind == "enc_mc" else None
        has_answer = np.ones(store.n, bool) if choice is None else choice >= 0
        return AnswerStates(store, tuple(stream), store.spans.start, has_answer, choice)
    column = store.task.decided_at
    if column is None or column not in store.columns:
        raise UsageError(f"{store.run_dir} does not say at which token it answers: no answer_pos and no next_pos.")
    position = _whole(store, column)
    return AnswerStates(store, tuple(stream), position, position >= 0)


def _whole(store: TraceStore, column: str) -> Int64[np.ndarray, " n"]:
    values: np.ndarray = read_columns(store, (column,)).to_pandas()[column].to_numpy(np.int64, na_value=-1)
    return values
