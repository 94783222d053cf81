"""The matrix as a page: counts by kind, what is missing where, what is refused and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

from dev.architectures.matrix import Verdict
from dev.architectures.tiny import Kind

KINDS: Final[Mapping[Kind, str]] = {
    "causal": "Causal language models",
    "multiple_choice": "Multiple choice",
    "masked": "Masked language models",
    "seq2seq": "Sequence to sequence",
}
STATUSES: Final = ("supported", "partly", "refused", "not applicable", "not buildable")


def counts(verdicts: Sequence[Verdict]) -> dict[str, Counter[str]]:
    """Return how many classes of each kind have each status."""
    found: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.which.kind, Counter())[verdict.status] += 1
    return found


def markdown(verdicts: Sequence[Verdict]) -> str:
    """Return the whole matrix as Markdown."""
    lines = [
        "# Which architectures can be traced",
        "",
        "Made by `python -m dev.architectures --out docs/architectures.md` with transformers "
        f"{version('transformers')} and torch {version('torch').split('+')[0]}. Every class of four of transformers' "
        "mappings is built tiny with random weights, probed on one input and certified on another: ragged rows of "
        "random ids, under eager and (where the class has it) SDPA attention.",
        "",
        "- **supported**: every stage: layer inputs and outputs, last hidden state, post_attn, attention, q, k, v, "
        "head_out, attn_out, mlp_out, mlp_act (and those of cross-attention, and the router of experts).",
        "- **partly**: the residual stream and the last hidden state are whole; the stages named are missing, or "
        "post_attn is derived (parallel blocks), or some layers have no attention (hybrids: they have their stream, "
        "the others all stages but those named). Asking for a missing one is refused with the reason.",
        "- **refused**: nothing can be traced, for the reason given. **not applicable**: no attention.",
        "",
        "| | classes | " + " | ".join(STATUSES) + " |",
        "|---|---|" + "---|" * len(STATUSES),
    ]
    for kind, found in counts(verdicts).items():
        numbers = " | ".join(str(found[status]) for status in STATUSES)
        lines.append(f"| {KINDS[kind]} | {found.total()} | {numbers} |")  # type: ignore[index]
    for kind, title in KINDS.items():
        own = [v for v in verdicts if v.which.kind == kind]
        if own:
            lines += ["", f"## {title}", "", *_kind_table(own)]
    lines += ["", "## Refused, not applicable, not buildable", "", *_refusals(verdicts)]
    return "\n".join(lines) + "\n"


def _kind_table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| model type | class | status | attention | remarks |", "|---|---|---|---|---|"]
    for v in verdicts:
        attention = ", ".join(v.attention) or "–"
        lines.append(f"| {v.which.model_type} | {v.which.name} | {v.status} | {attention} | {_remarks(v)} |")
    return lines


def _remarks(verdict: Verdict) -> str:
    if not verdict.traced:
        return "see below"
    words = ["post_attn derived"] if verdict.derived else []
    words += [f"{said}; the others their stream alone" for said in verdict.hybrid]
    by_reason: dict[str, list[str]] = {}
    for name, reason in verdict.missing.items():
        by_reason.setdefault(reason, []).append(name)
    words += [f"no {', '.join(names)}: {_cell(reason)}" for reason, names in by_reason.items()]
    words += [] if verdict.padded else ["padding changes its numbers: batches of one length"]
    words += [_cell(note) for note in verdict.notes]
    return "; ".join(words)


def _refusals(verdicts: Sequence[Verdict]) -> list[str]:
    return [
        "| kind | model type | status | reason |",
        "|---|---|---|---|",
        *(
            f"| {v.which.kind} | {v.which.model_type} | {v.status} | {_cell(v.reason)} |"
            for v in verdicts
            if not v.traced
        ),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
