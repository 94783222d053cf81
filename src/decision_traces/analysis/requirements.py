"""What an analysis needs of a run that may keep only some layers, heads and positions."""

import shlex
from typing import Final

from decision_traces.errors import NotCapturedError, UnsupportedArchitecture, UsageError
from decision_traces.format.stages import HEAD, KV_HEAD, LAYER
from decision_traces.store import StoredArray, TraceStore, layers_that_have

_ATTENTION: Final = ("dec_self_attn", "enc_self_attn", "enc_mc_attn")


def need_whole(array: StoredArray, what: str, *, positions: bool = False) -> None:
    """Raise where an array is not of all layers and heads of the model, in order.

    Args:
        array: What is to be read.
        what: The analysis, for the message.
        positions: Whether it needs all positions too, and not just those where decisions are made.

    Raises:
        UsageError: The run keeps some only, or some layers of the model have nothing of the kind.
    """
    dims, axes = array.dims, array.spec.axes
    if dims is None:
        return
    if dims.layers not in {None, tuple(range(dims.n_layers))} and array.spec.layer_axis is not None:
        raise _some(f"layers {', '.join(map(str, dims.layers or ()))}", what, "--layers")
    if dims.heads not in {None, tuple(range(dims.n_heads))} and {HEAD, KV_HEAD} & set(axes):
        raise _some(f"heads {', '.join(map(str, dims.heads or ()))}", what, "--heads")
    if positions and array.slots(array.position_axis).kept != "all":
        kept = dims.positions if isinstance(dims.positions, str) else ", ".join(map(str, dims.positions))
        raise _some(f"positions {kept}", what, "--positions")
    have = layers_that_have(array.spec, dims)
    if LAYER in axes and have is not None and len(array.numbers(LAYER)) < dims.n_layers:
        raise UsageError(f"{have[0].upper()}{have[1:]}; {what} needs it in all layers.")


def _some(part: str, what: str, flag: str) -> UsageError:
    return UsageError(f"This run keeps {part} only; {what} needs all: extract again without {flag}.")


def what_works(store: TraceStore) -> str:
    """Return the sentence that names the commands which do work with a run, for the refusal of another."""
    columns, task = set(store.columns), store.task
    decided = any(reading.needs in columns for reading in task.readings)
    states = any(store.has(name) for name in ("dec_hidden", "dec_res_pre_attn", "enc_hidden", "enc_res_pre_attn"))
    works = {
        "lens": states and store.about.final_norm is not None and decided,
        "attention": any(_has_whole(store, name) for name in _ATTENTION),
        "compare": task.verdict is not None and task.verdict.column in columns,
        "view": True,
    }
    run = shlex.quote(str(store.run_dir))
    named = [f"decision-traces {command} {run}" for command, works_here in works.items() if works_here]
    return f"This works with the run: {'; '.join(named)}."


def need_choices(store: TraceStore, *columns: str) -> None:
    """Raise where a run does not say what an encoder made of choices.

    Raises:
        UsageError: It is no such run, or its table lacks a column.
    """
    if not store.task.reads_choices or not {"label_idx", *columns} <= set(store.columns):
        raise UsageError(f"{store.run_dir} is no multiple-choice run of an encoder.")


def need_choice_states(store: TraceStore) -> None:
    """Raise where the choices of an encoder cannot be followed through its layers.

    Raises:
        NotCapturedError: The run did not capture `hidden`.
        UsageError: It is no such run, or does not keep all layers and positions.
    """
    need_choices(store, "choice_probs", "pred_idx")
    need_whole(store.array("enc_mc_hidden"), "the lens by choice", positions=True)


def refuse_unsplit(store: TraceStore, *, bends: bool = False) -> None:
    """Raise where logits are not a sum of what the parts of a model wrote, as far as a run's meta shows.

    Args:
        store: The run.
        bends: Whether the model's head is known to bend what it reads.

    Raises:
        UnsupportedArchitecture: They are not.
    """
    _refuse_post_norm(store)
    refuse_transform(store, bends=bends)
    refuse_cross_attention(store, "direct logit attribution")


def _refuse_post_norm(store: TraceStore) -> None:
    """Raise where the residual stream is not a sum of what its parts wrote.

    Raises:
        UnsupportedArchitecture: The run's meta says that its model normalises the stream after each write.
    """
    if store.about.post_attn == "post_norm":
        raise UnsupportedArchitecture(
            f"{store.about.model or 'The model'} normalises its residual stream after every layer (post-LN): the "
            "stream is not a sum of what its parts wrote, so logits cannot be attributed to them. "
            f"{what_works(store)}"
        )


def refuse_transform(store: TraceStore, *, bends: bool) -> None:
    """Raise where a head bends what the stream holds before it unembeds it, as those of masked-language models do.

    Args:
        store: The run.
        bends: Whether that is known of its model; of some kinds of decision it always is (`Task.linear_head`).

    Raises:
        UnsupportedArchitecture: It does.
    """
    if bends or not store.task.linear_head:
        raise UnsupportedArchitecture(
            f"{store.about.model or 'The model'} makes its logits by a head that is not linear: they are no sum of "
            f"what its parts wrote, and cannot be split up. {what_works(store)}"
        )


def _has_whole(store: TraceStore, name: str) -> bool:
    try:
        need_whole(store.array(name), name, positions=True)
    except (NotCapturedError, UsageError):
        return False
    return True


def refuse_cross_attention(store: TraceStore, what: str) -> None:
    """Raise for encoder-decoders, whose decoder writes a part into its stream that the analysis does not know.

    Raises:
        UnsupportedArchitecture: The run is of an encoder-decoder.
    """
    if store.arch == "encdec":
        raise UnsupportedArchitecture(
            f"{store.about.model or 'The model'} is an encoder-decoder, whose cross-attention writes into the "
            f"residual stream as well: {what} is made for decoders only. {what_works(store)}"
        )
