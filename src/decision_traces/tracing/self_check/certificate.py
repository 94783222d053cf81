"""The certificate: a run checks itself on its first rows before it writes anything.

Each figure compares what was captured with something computed another way. The rows are real text, not the
random ids the structure was found on; they run padded together, once more among other texts, and each alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from decision_traces.errors import CaptureError
from decision_traces.format.arrays import Side, side_of, site, stage_of
from decision_traces.format.stages import (
    CHECKED,
    HALVES,
    MLP_ACT,
    MLP_OUT,
    STAGES,
    STREAM,
    checked_by,
)
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.tokens import Encoding, TokenBatch, make_batch
from decision_traces.tracing.edits import Edit
from decision_traces.tracing.recorder import sites_of_stack
from decision_traces.tracing.self_check import attention as attention_checks
from decision_traces.tracing.self_check import router as router_checks
from decision_traces.tracing.self_check import stream as stream_checks
from decision_traces.tracing.self_check.check import Check, Checked
from decision_traces.tracing.self_check.evidence import outputs_of, record, zeroed
from decision_traces.tracing.self_check.whole_rows import whole_rows

ROWS: Final = 3
CANDIDATES: Final = 32
TOKENS: Final = 32

_ATTENTION: Final = frozenset(checked_by("attention"))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The checks of one run and the rows they were made on.

    Attributes:
        checks: The figures.
        rows: Numbers of the rows they were made on.
        tokens: How many tokens these have.
        sums_to_one: Site of attention probabilities to whether their rows sum to one; with attention sinks, less.
        notes: What could not be checked and why.
    """

    checks: tuple[Check, ...]
    rows: tuple[int, ...]
    tokens: int
    sums_to_one: dict[str, bool]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool | None:
        """Whether every check held; None where there was no token to check anything on."""
        return all(check.passed for check in self.checks) if self.checks else None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def failed_core(self) -> tuple[Check, ...]:
        """Those of them that condemn no single stage: nothing can be traced then."""
        return tuple(check for check in self.failed if not check.condemns)

    def to_meta(self) -> dict[str, Any]:
        """Return the form that stands in `meta.json`."""
        checks = [{k: v for k, v in asdict(check).items() if k != "condemns"} for check in self.checks]
        told = {"passed": self.passed, "rows": list(self.rows), "tokens": self.tokens, "checks": checks}
        return {**told, "notes": list(self.notes)}


def certify(
    loaded: LoadedModel,
    structure: ModuleStructure,
    sites: Sequence[str],
    encodings: Sequence[Encoding],
    pad: int,
    *,
    thorough: bool = True,
) -> Certificate:
    """Check the captures on the first rows of a run.

    Args:
        loaded: The model.
        structure: Where its inner path lies.
        sites: The distinct tensors the run will keep.
        encodings: The run's examples (or choices of examples); of the first few with more than one token (else with
            one), the shortest, one between and the longest are used, cut to 32 tokens; then the longest of all and
            the shortest, whole.
        pad: Id that fills padding.
        thorough: Also run the rows among other texts, and alone, and two at their whole length.
    """
    picked = _sample(encodings)
    if not picked:
        return Certificate((), (), 0, {})
    known = min(TOKENS, loaded.switch or TOKENS)
    rows = [_cut(encodings[i], known) for i in picked]
    if not structure.pads:
        rows = _alike(rows)
    checks, notes, sums = _Certifier(loaded, structure, sites, rows, pad).all(thorough=thorough)
    if thorough:
        checks += whole_rows(loaded, structure, encodings, pad, known)
    return Certificate(tuple(checks), tuple(picked), sum(e.n_tokens for e in rows), sums, tuple(notes))


def certify_as_padded(
    loaded: LoadedModel, structure: ModuleStructure, sites: Sequence[str], encodings: Sequence[Encoding], pad: int
) -> tuple[ModuleStructure, Certificate]:
    """As `certify`; where only padding changes what the model computes, its rows are not padded from then on.

    Returns:
        The structure, with `pads` false in that case, and the certificate that holds for it.
    """
    certificate = certify(loaded, structure, sites, encodings, pad)
    core = certificate.failed_core
    if core and all(check.padding for check in core):
        structure = replace(structure, pads=False)
        certificate = certify(loaded, structure, sites, encodings, pad)
    return structure, certificate


def check_structure(
    loaded: LoadedModel, structure: ModuleStructure, encodings: Sequence[Encoding], pad: int, *, thorough: bool = True
) -> tuple[ModuleStructure, Certificate]:
    """Check everything a structure says on other input, and return it without the stages that fail.

    Args:
        loaded: The model.
        structure: As `find_structure` found it.
        encodings: Rows of different lengths that it was not found on.
        pad: Id that fills padding.
        thorough: Also run the rows among other texts, and alone. A run leaves that to its certificate.

    Returns:
        The structure, in which a stage whose check failed is missing with the check as the reason, and the certificate
        of all checks. A check that condemns no single stage is left to the caller.
    """
    sites = [
        site(side, stage)
        for side, stack in structure.stacks.items()
        for stage in stages_to_check(loaded, stack.missing)
    ]
    if thorough:
        structure, certificate = certify_as_padded(loaded, structure, sites, encodings, pad)
    else:
        certificate = certify(loaded, structure, sites, encodings, pad, thorough=False)
    for check in certificate.failed:
        for name in check.condemns:
            reason = f"a check failed: {describe_failures([check])}"
            if stage_of(name) not in structure.stacks[side_of(name)].missing:
                structure = structure.without(side_of(name), stage_of(name), reason)
    return structure, certificate


def stages_to_check(loaded: LoadedModel, missing: Any) -> list[str]:
    """Return every stage that a model can be asked for under its present attention implementation."""
    eager = loaded.attention == "eager"
    return [s for s in CHECKED if s not in missing and (eager or not STAGES[s].needs_eager)]


def require(certificate: Certificate, model_name: str) -> None:
    """Raise unless every check held.

    Raises:
        CaptureError: Names the checks that failed with their figures.
    """
    if not certificate.failed:
        return
    told = f"{model_name} failed its certificate: {describe_failures(certificate.failed)}. Nothing was written, "
    if any(check.name == stream_checks.CAUSAL for check in certificate.failed):
        raise CaptureError(
            f"{told}because it reads later tokens and is no decoder: `decision-traces extract --task encode` traces "
            "the states of an encoder."
        )
    raise CaptureError(
        f"{told}because the traces would not be what the model computed. Leave out the captures that fail, or keep the "
        "run as it is with --uncertified, which it then says wherever it is opened."
    )


def describe_failures(checks: Iterable[Check]) -> str:
    """Return failed checks with their figures, in one line."""
    return "; ".join(f"{c.name} (worst {c.worst:.2g}, allowed {c.allowed:.2g})" for c in checks)


def _sample(encodings: Sequence[Encoding]) -> list[int]:
    """Return the numbers of rows of different lengths, so that padding is tried."""
    order = sorted(range(len(encodings)), key=lambda i: encodings[i].n_tokens < 2)
    usable = [i for i in order if encodings[i].n_tokens][:CANDIDATES]
    longer = [i for i in usable if encodings[i].n_tokens > 1] or usable
    by_length = sorted(longer, key=lambda i: min(encodings[i].n_tokens, TOKENS))
    picked = {round(i * (len(by_length) - 1) / (ROWS - 1)) for i in range(ROWS)} if by_length else set()
    return [by_length[i] for i in sorted(picked)]


def _cut(encoding: Encoding, most: int = TOKENS) -> Encoding:
    types = None if encoding.type_ids is None else encoding.type_ids[:most]
    target = None if encoding.target is None else _cut(encoding.target, most)
    return Encoding(encoding.ids[:most], encoding.offsets[:most], encoding.truncated, types, target=target)


def _alike(rows: Sequence[Encoding]) -> list[Encoding]:
    """Return rows cut to the same length, for a model whose rows are never padded."""
    target = min((r.target.n_tokens for r in rows if r.target), default=0)
    cut = [_cut(r, min(r.n_tokens for r in rows)) for r in rows]
    return [replace(r, target=_cut(r.target, target)) if r.target else r for r in cut]


class _Certifier:
    """Makes the passes and hands them to the proofs."""

    def __init__(
        self, loaded: LoadedModel, structure: ModuleStructure, sites: Sequence[str], rows: Sequence[Encoding], pad: int
    ) -> None:
        self.loaded, self.structure, self.sites, self.rows, self.pad = loaded, structure, sites, rows, pad
        self.notes: list[str] = []

    def all(self, *, thorough: bool) -> tuple[list[Check], list[str], dict[str, bool]]:
        """Return the checks, the notes, and which attention sums to one."""
        with torch.inference_mode():
            batch = make_batch(range(len(self.rows)), self.rows, self.pad)
            places = self._places(self._wanted())
            with outputs_of(self.loaded.model, self._last_matrices()) as gave:
                together = record(self.loaded, self.structure, places, batch, with_logits=True)
            checked = Checked(self.loaded, self.structure, together, self.notes)
            checks = list(stream_checks.reported(checked, batch))
            checks += self._interventions(checked, batch)
            checks += [stream_checks.last_matrices(checked, gave, side) for side in self._with_neurons()]
            checks += [c for side in self.structure.stacks for c in stream_checks.sums(checked, side)]
            checks += router_checks.routed(checked, batch)
            if thorough:
                checks += self._other_rows(checked, places)
                checks += self._alone(checked)
                checks += self._later_tokens(checked)
            checks += stream_checks.head(checked, batch)
            checks += self._attention(checked)
        return checks, self.notes, attention_checks.sums_to_one(checked)

    def _wanted(self) -> dict[Side, list[str]]:
        """Return the stages to record: those the run keeps, and those their checks need."""
        wanted: dict[Side, list[str]] = {}
        for side, stack in self.structure.stacks.items():
            own = [stage_of(name) for name in self.sites if side_of(name) == side]
            stages = dict.fromkeys([*own, *STREAM, *HALVES])
            stages |= dict.fromkeys(s for stage in tuple(stages) for s in STAGES[stage].checked_with)
            wanted[side] = [stage for stage in stages if stage not in stack.missing]
        return wanted

    def _places(self, wanted: dict[Side, list[str]]) -> list[tuple[str, int]]:
        return [p for side, stages in wanted.items() for p in sites_of_stack(side, self.structure.stacks[side], stages)]

    def _with_neurons(self) -> list[Side]:
        """Return the sides whose hidden neurons the run keeps."""
        return [
            side
            for side, stack in self.structure.stacks.items()
            if not {MLP_ACT, MLP_OUT} & stack.missing.keys() and site(side, MLP_ACT) in self.sites
        ]

    def _last_matrices(self) -> list[str]:
        """Return the names of the matrices that read them."""
        layers = (layer for side in self._with_neurons() for layer in self.structure.stacks[side].layers)
        return [layer.mlp_last for layer in layers if layer.mlp_last]

    # -- what the model does when a part of it is silent ----------------------------------------------------

    def _interventions(self, checked: Checked, batch: TokenBatch) -> Iterator[Check]:
        stages = {
            side: [s for s in (*STREAM, *HALVES) if s not in stack.missing]
            for side, stack in self.structure.stacks.items()
        }
        without = record(self.loaded, self.structure, self._places(stages), batch, zeroed)
        for side in self.structure.stacks:
            yield from stream_checks.attention_writes(checked, without, side)
        for side, stack in self.structure.stacks.items():
            if side not in self._with_neurons():
                continue
            places = sites_of_stack(side, stack, (*STREAM, MLP_OUT))
            silence = dict.fromkeys(sites_of_stack(side, stack, (MLP_ACT,)), Edit.set(0.0))
            silent = record(self.loaded, self.structure, places, batch, write=silence)
            yield stream_checks.neurons(checked, silent, side)

    # -- what else is in the batch --------------------------------------------------------------------------

    def _other_rows(self, checked: Checked, places: Sequence[tuple[str, int]]) -> Iterator[Check]:
        """Run the batch with other texts in every second row, then in the others, and other ids in the padding.

        The shapes stay as they were, so that what does not depend on them is the same to the last bit, whatever the
        model's type. A decoder's other texts begin as before, so that they show too whether it sees later tokens.
        """
        decoder = list(self.structure.stacks) == ["dec"]
        other = _other_end if decoder else _turned
        n = len(self.rows)
        passes = []
        for kept in ([i for i in range(n) if i % 2 == parity] for parity in (0, 1)):
            texts = [row if i in kept else other(row) for i, row in enumerate(self.rows)]
            batch = _refilled(make_batch(range(n), texts, self.pad), [int(row.ids[-1]) for row in self.rows])
            passes.append((kept, record(self.loaded, self.structure, places, batch)))
        yield from stream_checks.rows(checked, passes)
        if decoder:
            yield stream_checks.causal(
                checked, [([i for i in range(n) if i not in kept], taken) for kept, taken in passes]
            )

    def _alone(self, checked: Checked) -> Iterator[Check]:
        """In float32, run each row by itself: its stream is the same as in the batch, up to the order of sums."""
        if checked.dtype != torch.float32:
            return
        places = self._places({side: list(STREAM) for side in self.structure.stacks})
        alone = [record(self.loaded, self.structure, places, make_batch([0], [r], self.pad)) for r in self.rows]
        yield from stream_checks.alone(checked, alone)

    def _later_tokens(self, checked: Checked) -> Iterator[Check]:
        """Run an encoder-decoder's texts with other second halves of their targets."""
        if len(self.structure.stacks) < 2:
            return
        places = sites_of_stack("dec", self.structure.stacks["dec"], STREAM[:2])
        others = [row if row.target is None else replace(row, target=_other_end(row.target)) for row in self.rows]
        changed = record(self.loaded, self.structure, places, make_batch(range(len(others)), others, self.pad))
        yield stream_checks.causal(checked, [(range(len(others)), changed)])

    # -- attention ------------------------------------------------------------------------------------------

    def _attention(self, checked: Checked) -> Iterator[Check]:
        """Prove attention from its probabilities; without them, where it is torch's own, from q, k and v by hand."""
        captured = {stage_of(name) for name in self.sites}
        if any(STAGES[stage].by_key for stage in captured):
            yield from attention_checks.attention(checked, self.sites)
        elif captured & _ATTENTION:
            if all(by_hand is None for by_hand in checked.together.fused):
                self.notes.append(
                    "q, k and v were not proved: neither probabilities nor torch's own attention are seen"
                )
            yield from attention_checks.fused_attention(checked)


def _turned(row: Encoding) -> Encoding:
    """Return another text of the same length: the same tokens, the last one first (heads may count special ones)."""
    return replace(row, ids=np.roll(row.ids, 1), target=None if row.target is None else _turned(row.target))


def _other_end(row: Encoding) -> Encoding:
    """Return a text whose second half is its first one again."""
    half = (row.n_tokens + 1) // 2
    return replace(row, ids=np.concatenate([row.ids[:half], row.ids[: row.n_tokens - half]]))


def _refilled(batch: TokenBatch, ids: Sequence[int]) -> TokenBatch:
    """Return a batch whose padding holds these ids, one a row, still masked."""
    filler = torch.tensor(ids, device=batch.input_ids.device)[:, None]
    filled = torch.where(batch.attention_mask.bool(), batch.input_ids, filler)
    return replace(batch, input_ids=filled, target=None if batch.target is None else _refilled(batch.target, ids))
