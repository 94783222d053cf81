"""Decision depth of a run, whatever it decides between: the next token, or the answers to a question."""

from pathlib import Path

from decision_traces.analysis.lens.by_choice import lens_by_choice
from decision_traces.analysis.lens.depth import decision_depth, depth_by_choice
from decision_traces.analysis.lens.encoders import encoder_lens_by_choice, load_head
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.analysis.requirements import need_choice_states
from decision_traces.analysis.results import DecisionDepth
from decision_traces.store import TraceStore


def run_depth(
    store: TraceStore, model_path: Path | None = None, device: str = "auto", *, trust_remote_code: bool = False
) -> DecisionDepth:
    """Return when each decision of a run was made.

    Next-token runs are read with the logit lens, runs with choices with the lens by choice.

    Args:
        store: A run that captured `hidden`.
        model_path: Where the model is now, if it has moved since the run.
        device: "auto" (a GPU if there is one) or a torch device.
        trust_remote_code: Run Python that the model brings along; what the run recorded about it does not count.

    Raises:
        TraceError: See `decision_depth`, `lens_by_choice` and `encoder_lens_by_choice`.
    """
    if store.task.reads_choices:
        need_choice_states(store)
        return depth_by_choice(
            encoder_lens_by_choice(store, load_head(store, model_path, device, trust_remote_code=trust_remote_code))
        )
    unembedding = load_unembedding(store, model_path, device, trust_remote_code=trust_remote_code)
    if store.task.choices:
        return depth_by_choice(lens_by_choice(store, unembedding))
    return decision_depth(logit_lens(store, unembedding))
