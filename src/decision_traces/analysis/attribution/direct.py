"""Direct logit attribution: what each part of a model adds to the lead of the true token over its competitor."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from decision_traces.analysis.attribution.heads import HeadWriter
from decision_traces.analysis.attribution.split import Leads, Split, split_leads
from decision_traces.analysis.attribution.way import Way
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.logit_lens import with_competitors
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.states import parts
from decision_traces.errors import ModelError
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Decisions, Kind

Columns = dict[str, np.ndarray]


def direct_attribution(
    store: TraceStore,
    unembedding: Unembedding,
    heads: tuple[HeadWriter, ...] | None = None,
    *,
    kind: Kind | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Split the model's logit difference (target minus competitor) into what each of its parts wrote.

    Method: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": the residual stream is a sum
    of what embedding, attention and MLPs wrote; with the final norm frozen at the actual final residual, so is the
    logit difference. The sum is checked against the difference that the run stored. Of a model that caps its logits
    (Gemma 2) the difference before the cap is split up, since only that is a sum; its own logits, capped, are checked
    against what the run stored.

    Memory: the result, and one layer of some examples (64 MB) of each array, a few times over in float64.

    Args:
        store: A decoder run that captured `resid`, or `hidden`, `attn_out` and `mlp_out`.
        unembedding: The model's final norm and output embedding.
        heads: Each layer's way from heads to the stream (`heads.find_head_writers`), to split attention by head; the
            run must have captured `head_out`, or `attn` and `qkv`, as well.
        kind: Which decisions; the run's own where left out (`decisions.kinds_of`).
        progress: Called with (examples done, of how many).

    Raises:
        NotCapturedError: The run did not capture what is needed.
        UnsupportedArchitecture: The model normalises the stream itself (post-LN), its final norm cannot be frozen, or
            it is an encoder-decoder.
        UsageError: The run has no such decision, does not keep all layers, or not every layer has attention.
        ModelError: The parts do not add up to the model's logit difference.
    """
    way = Way.of(store, unembedding, heads)
    decisions = with_competitors(decisions_of(store, kind), store, unembedding)
    table = LeadTable(way, decisions)
    for part in parts(way.points, decisions):
        final = way.final(part.read)
        leads = table.leads(part.decisions, np.arange(len(part)), final)
        table.add(leads, *split_leads(way, part, final, [leads]))
        if progress is not None:
            progress(part.rows.stop, store.n)
    return table.result()


@dataclass(frozen=True, slots=True)
class LeadTable:
    """What is known so far of the leads that decisions are about.

    Attributes:
        way: From the stream to the logits.
        decisions: All of them; they come in order.
    """

    way: Way
    decisions: Decisions
    _found: list[Columns] = field(default_factory=list)

    def leads(self, here: slice, picked: Int64[np.ndarray, " m"], final: Float32[np.ndarray, "n d_model"]) -> Leads:
        """Return the leads of some decisions: of the target over its competitor.

        Args:
            here: Which decisions.
            picked: (m,) at which of the positions that are read each is made.
            final: What the final norm reads at all these positions.
        """
        unembedding = self.way.unembedding
        ids = np.stack([self.decisions.target_id[here], self.decisions.competitor_id[here]], axis=1)
        at = torch.from_numpy(final[picked]), torch.from_numpy(ids)
        uncapped = unembedding.token_logits(*at, normed=False, capped=False).double().cpu()
        return Leads(picked, ids, uncapped.numpy())

    def add(self, leads: Leads, split: Split) -> None:
        """Take leads, and what they are split into."""
        parts, logits = split.parts[:, 1], leads.logits
        capped = self.way.unembedding.ending.capped(torch.from_numpy(logits)).numpy()
        columns = {
            "embed": parts[:, 0],
            "attn": parts[:, 1:-1:2],
            "mlp": parts[:, 2:-1:2],
            "remainder": parts[:, -1],
            "by_unembedding": logits[:, 0] - logits[:, 1],
            "capped": capped[:, 0] - capped[:, 1],
            "allowed": split.allowed(self.way)[:, 1],
        }
        if split.heads is not None and split.attn_bias is not None:
            columns |= {"heads": split.heads[:, 1], "attn_bias": split.attn_bias[:, 1]}
        self._found.append(columns)

    def result(self) -> Attribution:
        """Return all of it.

        Raises:
            ModelError: The parts do not add up to the model's logit difference.
        """
        columns = {name: np.concatenate([part[name] for part in self._found]) for name in self._found[0]}
        made, cap = self.decisions, self.way.unembedding.ending.cap
        difference, missed = _checked(made, columns, cap)
        result = Attribution(
            example_id=made.example_id,
            correct=made.correct,
            known=made.true_id >= 0,
            target_id=made.target_id.astype(np.int32),
            competitor_id=made.competitor_id.astype(np.int32),
            embed=_single(columns["embed"]),
            attn=_single(columns["attn"]),
            mlp=_single(columns["mlp"]),
            remainder=_single(columns["remainder"]),
            heads=None,
            attn_bias=None,
            difference=_single(difference),
            sum_error=float(missed.max()),
            logit_cap=cap,
        )
        if "heads" not in columns:
            return result
        apart = np.abs(columns["heads"].sum(2) + columns["attn_bias"] - columns["attn"])
        heads, bias = _single(columns["heads"]), _single(columns["attn_bias"])
        return replace(result, heads=heads, attn_bias=bias, head_error=float(apart.max()))


def _checked(
    decisions: Decisions, columns: Columns, cap: float | None
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the model's logit differences, as stored where they were, and how far the sums of the parts are off.

    Raises:
        ModelError: One is off by more than rounding.
    """
    stored, allowed = decisions.difference.astype(np.float64), columns["allowed"]
    is_stored, difference = ~np.isnan(stored), columns["by_unembedding"]
    total = columns["embed"] + columns["attn"].sum(1) + columns["mlp"].sum(1) + columns["remainder"]
    if cap is None:
        difference = np.where(is_stored, stored, difference)
    else:
        _refuse_more(np.where(is_stored, columns["capped"] - stored, 0.0), allowed, decisions)
    return difference, _refuse_more(total - difference, allowed, decisions)


def _refuse_more(
    missed: Float64[np.ndarray, " n"], allowed: Float64[np.ndarray, " n"], decisions: Decisions
) -> Float64[np.ndarray, " n"]:
    """Return the sizes of what is missed.

    Raises:
        ModelError: One is more than rounding.
    """
    missed = np.abs(missed)
    if not (missed <= allowed).all():
        worst = decisions.example_id[int(np.nanargmax(missed / allowed))]
        raise ModelError(
            f"The parts miss the model's logit difference by {np.nanmax(missed):.3g} (worst: {worst}), more than "
            "rounding explains. The model is not the one of the run, or does more than its parts say."
        )
    return missed


def _single(values: np.ndarray) -> Float32[np.ndarray, "..."]:
    single: np.ndarray = values.astype(np.float32)
    return single
