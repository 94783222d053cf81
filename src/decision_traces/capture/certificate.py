"""The certificate: a run checks itself on its first rows before it writes anything.

Each figure compares what was captured with something computed another way. The rows are real text, not the
random ids the anatomy was found on; they run padded together and once more each alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from einops import repeat
from torch import Tensor

from decision_traces.capture.buffers import BlockBuffers
from decision_traces.capture.forward import all_logits, batch_inputs
from decision_traces.capture.recorder import Recorder
from decision_traces.errors import CaptureError
from decision_traces.models.anatomy import Anatomy
from decision_traces.models.intercept import AttentionCall
from decision_traces.models.load import LoadedModel
from decision_traces.models.task import base_inputs
from decision_traces.schema import ATTN, ATTN_OUT, EMBED, FINAL, POST_ATTN, POST_MLP, Dims, K, Q, V
from decision_traces.tokens import Encoding, TokenBatch, make_batch

ROWS: Final = 3
CANDIDATES: Final = 32
TOKENS: Final = 48
TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest difference allowed, relative per element (see `relative_difference`); a few hundred roundings."""


_ADDED_TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""A difference of two large numbers loses digits, most of all in bfloat16; a wrong tap misses by far more."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure of the certificate: the largest difference found, what was allowed, and the verdict."""

    name: str
    worst: float
    allowed: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """The checks of one run and the rows they were made on.

    Attributes:
        checks: The figures.
        rows, tokens: How many examples and tokens they were made on.
        rows_sum_to_one: Whether the model's attention rows do; with attention sinks they sum to less.
    """

    checks: tuple[Check, ...]
    rows: int
    tokens: int
    rows_sum_to_one: bool = True

    @property
    def passed(self) -> bool | None:
        """Whether every check held; None where there was no token to check anything on."""
        return all(check.passed for check in self.checks) if self.checks else None

    def to_meta(self) -> dict[str, Any]:
        """Return the form that stands in `meta.json`."""
        checks = [asdict(check) for check in self.checks]
        return {"passed": self.passed, "rows": self.rows, "tokens": self.tokens, "checks": checks}


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest |a - b| relative to the element itself plus the median magnitude.

    Against the array's maximum a few massive activations would hide any error; against the element alone a
    value near zero would make one of nothing.
    """
    if a.numel() == 0:
        return 0.0
    a, b = a.float(), b.float()
    size = b.abs()
    worst = ((a - b).abs() / (size + size.median() + 1e-30)).max()
    return float(worst)


@dataclass(slots=True)
class _Pass:
    """One recorded forward pass: float32 copies of every site, the logits, the attention outputs."""

    sites: dict[str, Tensor]
    logits: Tensor
    attention_outputs: list[Tensor]


def certify(
    loaded: LoadedModel, anatomy: Anatomy, sites: Sequence[str], encodings: Sequence[Encoding], pad: int
) -> Certificate:
    """Check the captures on the first rows of a run.

    Args:
        loaded: The model.
        anatomy: Where its inner path lies.
        sites: The distinct tensors the run will keep.
        encodings: The run's examples (or choices of examples); of the first few with more than one token (else with
            one), the shortest, one between and the longest are used, cut to 48 tokens.
        pad: Id that fills padding.
    """
    rows = _sample(encodings)
    if not rows:
        return Certificate((), 0, 0)
    batch = make_batch(range(len(rows)), rows, pad)
    post_norm = anatomy.post_attn_kind == "post_norm"
    stream = (EMBED, POST_ATTN, POST_MLP, *((ATTN_OUT,) if post_norm else ()))
    wanted = tuple(dict.fromkeys((*sites, *stream, FINAL, *((V,) if ATTN in sites else ()))))
    causal = loaded.task == "causal"
    with torch.inference_mode():
        plain = all_logits(loaded.model, batch, loaded.device, loaded.task)
        together = _record(loaded, anatomy, wanted, batch)
        alone = [_record(loaded, anatomy, wanted, make_batch([0], [row], pad)) for row in rows]
        without_attention = _record(loaded, anatomy, stream, batch, attend=False)
        inputs, last = _reported(loaded, batch)
        mask = batch.attention_mask.bool()
        checks = [
            _exact("logits with capture equal logits without", plain, together.logits),
            _exact("layer inputs are those transformers reports", _stream_in(together)[:, mask], inputs[:, mask]),
            _exact("hidden[L] is the base model's last hidden state", together.sites[FINAL][0][mask], last[mask]),
            *(_post_norm_check(loaded, anatomy, together, mask) if post_norm else ()),
            *_post_attn_checks(loaded, anatomy, together, without_attention, mask),
            *_row_checks(loaded, together, alone, batch.lengths),
            *((_causal_check(loaded, anatomy, rows, alone, pad),) if causal else ()),
            *_head_check(loaded, anatomy, together, batch),
            *_attention_checks(loaded, together, batch.lengths, causal=causal),
        ]
    return Certificate(tuple(checks), len(rows), sum(batch.lengths), _rows_sum_to_one(loaded, together, batch.lengths))


def require(certificate: Certificate, model_name: str) -> None:
    """Raise unless every check held.

    Raises:
        CaptureError: Names the checks that failed with their figures.
    """
    failed = [f"{c.name} (worst {c.worst:.2g}, allowed {c.allowed:.2g})" for c in certificate.checks if not c.passed]
    if failed:
        raise CaptureError(
            f"{model_name} failed its certificate: {'; '.join(failed)}. Nothing was written, because the traces "
            "would not be what the model computed."
        )


def _dtype(loaded: LoadedModel) -> torch.dtype:
    return next(loaded.model.parameters()).dtype


def _sample(encodings: Sequence[Encoding]) -> list[Encoding]:
    """Return rows of different lengths, so that padding is tried, cut to a few tokens."""
    usable = [_cut(e) for e in sorted(encodings, key=lambda e: e.n_tokens < 2) if e.n_tokens][:CANDIDATES]
    longer = [e for e in usable if e.n_tokens > 1] or usable
    by_length = sorted(longer, key=lambda e: e.n_tokens)
    picked = {round(i * (len(by_length) - 1) / (ROWS - 1)) for i in range(ROWS)} if by_length else set()
    return [by_length[i] for i in sorted(picked)]


def _cut(encoding: Encoding) -> Encoding:
    types = None if encoding.type_ids is None else encoding.type_ids[:TOKENS]
    return Encoding(encoding.ids[:TOKENS], encoding.offsets[:TOKENS], encoding.truncated, types)


def _record(
    loaded: LoadedModel, anatomy: Anatomy, sites: Sequence[str], batch: TokenBatch, *, attend: bool = True
) -> _Pass:
    """Record a forward pass; without `attend`, every attention function's output is zero."""
    n, longest = batch.input_ids.shape
    dims = Dims(n, anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads, anatomy.d_head, anatomy.d_model, longest)
    buffers = BlockBuffers(sites, dims, n, "float32")
    buffers.start(batch.lengths)
    outputs: list[Tensor] = []

    def watch(call: AttentionCall) -> Tensor | None:
        outputs.append(call.output.float().cpu())
        return None if attend else torch.zeros_like(call.output)

    recorder = Recorder(loaded.model, anatomy, buffers, watch)
    with recorder.recording(range(n), batch.lengths):
        logits = all_logits(loaded.model, batch, loaded.device, loaded.task)
    if attend:
        buffers.check_finite()
    return _Pass({site: b.data for site, b in buffers.sites.items()}, logits, outputs)


def _exact(name: str, a: Tensor, b: Tensor) -> Check:
    worst = 0.0 if torch.equal(a, b) else float((a.float() - b.float()).abs().max())
    return Check(name, worst, 0.0, torch.equal(a, b))


def _within(name: str, worst: float, allowed: float) -> Check:
    return Check(name, worst, allowed, worst <= allowed)


def _stream_in(taken: _Pass) -> Tensor:
    """Return the layers' inputs: (layer, batch, position, d_model)."""
    return torch.cat([taken.sites[EMBED], taken.sites[POST_MLP][:-1]])


def _reported(loaded: LoadedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return the layers' inputs and the last hidden state as transformers itself reports them."""
    asked = batch_inputs(batch, loaded.device, loaded.task)
    states = loaded.model(**asked, output_hidden_states=True).hidden_states[:-1]
    last = loaded.model.base_model(**base_inputs(loaded.task, asked)).last_hidden_state  # type: ignore[operator]
    return torch.stack([h.float().cpu() for h in states]), last.float().cpu()


def _post_attn_checks(
    loaded: LoadedModel, anatomy: Anatomy, together: _Pass, without: _Pass, mask: Tensor
) -> list[Check]:
    """What attention adds differs from token to token, and is one constant (its biases) once attention gives zeros.

    That explains post_attn - pre_attn by this layer's attention and nothing else, without a name. In post-LN
    families a norm stands between; there what attention adds is what `_post_norm_check` found it to be.
    """
    constant, varied = 0.0, float("inf")
    for layer in range(anatomy.n_layers):
        spread = []
        for taken in (without, together):
            before, after = _stream_in(taken)[layer][mask], taken.sites[POST_ATTN][layer][mask]
            if ATTN_OUT in taken.sites:
                added = taken.sites[ATTN_OUT][layer][mask]
                after = before + added
            else:
                added = after - before
            size = after.abs() + after.abs().median() + 1e-30
            spread.append(float(((added - added[:1]).abs() / size).max()))
        constant, varied = max(constant, spread[0]), min(varied, spread[1] - 4 * spread[0])
    one_token = int(mask.sum()) < 2
    return [
        _within(
            "post_attn: without attention, only a constant is added to pre_attn",
            constant,
            _ADDED_TOLERANCE[_dtype(loaded)],
        ),
        Check("post_attn: attention adds something to pre_attn", varied, 0.0, varied > 0 or one_token),
    ]


def _post_norm_check(loaded: LoadedModel, anatomy: Anatomy, together: _Pass, mask: Tensor) -> list[Check]:
    """Post-LN families: post_attn is the layer's own norm of pre_attn plus what attention writes."""
    worst = 0.0
    for layer, plan in enumerate(anatomy.layers):
        norm = loaded.model.get_submodule(plan.post_attn_norm or "")
        total = (_stream_in(together)[layer] + together.sites[ATTN_OUT][layer])[mask]
        normed = norm(total.to(loaded.device, _dtype(loaded))).float().cpu()
        worst = max(worst, relative_difference(together.sites[POST_ATTN][layer][mask], normed))
    allowed = TOLERANCE[_dtype(loaded)]
    return [_within("post_attn: the norm of pre_attn + what attention writes", worst, allowed)]


def _row_checks(loaded: LoadedModel, together: _Pass, alone: Sequence[_Pass], lengths: Sequence[int]) -> list[Check]:
    allowed = TOLERANCE[_dtype(loaded)]
    worst: dict[str, float] = {}
    for i, (single, n) in enumerate(zip(alone, lengths, strict=True)):
        for site, value in single.sites.items():
            both = (together.sites[site][:, i], value[:, 0])
            if site == ATTN:
                cut = [v[:, :, :n, :n] for v in both]
            else:
                by_head = site in {Q, K, V}
                cut = [v[:, :, :n] if by_head else v[:, :n] for v in both]
            worst[site] = max([worst.get(site, 0.0), *(relative_difference(a, b) for a, b in zip(*cut, strict=True))])
    return [_within(f"{site}: a row in the batch equals the row alone", w, allowed) for site, w in worst.items()]


def _causal_check(
    loaded: LoadedModel, anatomy: Anatomy, rows: Sequence[Encoding], alone: Sequence[_Pass], pad: int
) -> Check:
    """The first half of a text, run by itself, gives what it gave inside the whole text."""
    worst = 0.0
    for row, whole in zip(rows, alone, strict=True):
        half = (row.n_tokens + 1) // 2
        cut = Encoding(row.ids[:half], row.offsets[:half], row.truncated)
        first = _record(loaded, anatomy, (POST_MLP,), make_batch([0], [cut], pad)).sites[POST_MLP]
        pairs = zip(whole.sites[POST_MLP][:, 0, :half], first[:, 0], strict=True)
        worst = max([worst, *(relative_difference(a, b) for a, b in pairs)])
    allowed = TOLERANCE[_dtype(loaded)]
    return _within("causal: no position depends on later tokens", worst, allowed)


def _head_check(loaded: LoadedModel, anatomy: Anatomy, together: _Pass, batch: TokenBatch) -> list[Check]:
    if not anatomy.logits_are_unembedded:
        return []
    head = loaded.model.get_output_embeddings()  # type: ignore[operator]
    mask = batch.attention_mask.bool()
    hidden = together.sites[FINAL][0][mask].to(loaded.device, head.weight.dtype)
    worst = relative_difference(head(hidden), together.logits[mask.to(loaded.device)])
    return [_within("the unembedding of hidden[L] gives the logits", worst, TOLERANCE[head.weight.dtype])]


def _attention_checks(loaded: LoadedModel, together: _Pass, lengths: Sequence[int], *, causal: bool) -> list[Check]:
    if ATTN not in together.sites:
        return []
    probabilities = together.sites[ATTN]
    later = rows = 0.0
    for i, n in enumerate(lengths):
        part = probabilities[:, i, :, :n, :n]
        later = max(later, float(part.triu(1).abs().max()))
        rows = max(rows, float((part.sum(-1) - 1).max()))
    order = [_within("attention: no probability on later tokens", later, 0.0)] if causal else []
    return [
        *order,
        _within("attention: rows sum to at most 1", rows, _sum_tolerance(loaded)),
        _within(
            "attention: probabilities times v give the output", _mixing(together, lengths), TOLERANCE[_dtype(loaded)]
        ),
    ]


def _sum_tolerance(loaded: LoadedModel) -> float:
    return 1e-4 if _dtype(loaded) == torch.float32 else 1e-2


def _rows_sum_to_one(loaded: LoadedModel, together: _Pass, lengths: Sequence[int]) -> bool:
    """Return whether attention rows sum to 1. Where they sum to less though attn @ v is right, there are sinks."""
    if ATTN not in together.sites:
        return True
    parts = (together.sites[ATTN][:, i, :, :n, :n] for i, n in enumerate(lengths))
    return all(float((part.sum(-1) - 1).abs().max()) < _sum_tolerance(loaded) for part in parts)


def _mixing(together: _Pass, lengths: Sequence[int]) -> float:
    """Return how far attn @ v is from what the model's attention function gave."""
    worst = 0.0
    attn, value = together.sites[ATTN], together.sites[V]
    groups = attn.shape[2] // value.shape[2]
    for layer, output in enumerate(_one_a_layer(together, attn.shape[0])):
        for i, n in enumerate(lengths):
            v = repeat(value[layer, i, :, :n], "h t d -> (h g) t d", g=groups)
            mixed = (attn[layer, i, :, :n, :n] @ v).transpose(0, 1)
            worst = max(worst, relative_difference(mixed, output[i, :n]))
    return worst


def _one_a_layer(together: _Pass, n_layers: int) -> list[Tensor]:
    if len(together.attention_outputs) != n_layers:
        raise CaptureError(f"attention gave {len(together.attention_outputs)} outputs for {n_layers} layers")
    return together.attention_outputs
