"""The model's own way from a residual vector to logits: final norm, output embedding, and what it makes of these.

Models that scale or cap their logits are read as they do it (`models.logit_map`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from decision_traces import demo
from decision_traces.analysis.requirements import what_works
from decision_traces.errors import DamagedRunError, ModelError, UnsupportedArchitecture
from decision_traces.folders.plain import PlainFolder, refuse_strange_inside
from decision_traces.format.arrays import UNEMBED_DIR, UNEMBED_FILE, ModelTask
from decision_traces.format.meta import RunMeta
from decision_traces.model.digest import weights_digest
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.in_memory import loaded_from_memory, recall, was_in_memory
from decision_traces.model.load import (
    DEMO_MODEL,
    Attention,
    LoadedModel,
    ModelDtype,
    ModelSource,
    load_model,
    load_tokenizer,
    resolve_device,
)
from decision_traces.model.logit_map import LogitMap
from decision_traces.model.own_head import OwnHead, own_head
from decision_traces.model.structure import IDENTITY
from decision_traces.model.unembed_file import (
    holds_words,
    load_unembedding_file,
    load_words,
)
from decision_traces.printable import printable
from decision_traces.store import TraceStore, problem_of, read_manifest

_LOG: Final = logging.getLogger("decision_traces")
_AS_IT_IS: Final = LogitMap()
# Bytes of float32 logits at a time: a few such arrays are alive at once. The fewer the portions, the less often the
# whole embedding goes through the processor.
_LOGIT_BYTES: Final = {"cpu": 64 << 20, "cuda": 256 << 20}


@dataclass(frozen=True, slots=True)
class Unembedding:
    """Final norm and output embedding of one model.

    Attributes:
        norm: What leads from the last layer's output to the last hidden state; None where nothing does.
        head: The output embedding: one row of weights a token, and maybe a bias; or all of a model's head (`OwnHead`)
            where it is more.
        ending: What the model makes of what an output embedding gives: its logits.
    """

    norm: nn.Module | None
    head: nn.Module
    ending: LogitMap = _AS_IT_IS

    @property
    def weight(self) -> Float[Tensor, "vocab d_model"]:
        """The output embedding's weights, on their device."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def is_linear(self) -> bool:
        """Whether logits (before a cap) are linear in the last hidden state, so that they can be split up."""
        return not isinstance(self.head, OwnHead)

    @property
    def bias(self) -> Float[Tensor, " vocab"] | None:
        """The output embedding's bias, where it has one."""
        bias = getattr(self.head, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @torch.inference_mode()
    def normed(self, residual: Float[Tensor, "n d_model"], *, normed: bool) -> Float[Tensor, "n d_model"]:
        """Return the last hidden state that a residual vector gives; see `logits`."""
        x = residual.to(self.weight.device, self.weight.dtype)
        return x if self.norm is None or normed else self.norm(x)

    @torch.inference_mode()
    def logits(
        self, residual: Float[Tensor, "n d_model"], *, normed: bool, capped: bool = True
    ) -> Float[Tensor, "n vocab"]:
        """Return the logits a residual vector would give if the model ended there, in float32.

        Args:
            residual: Vectors of the residual stream, any float type.
            normed: Whether the final norm has been applied already (true for `hidden[L]`).
            capped: Whether the cap is applied, in a model that caps its logits.
        """
        unembedded: Tensor = self.head(self.normed(residual, normed=normed))
        uncapped = self.ending.uncapped(unembedded.float())
        return self.ending.capped(uncapped) if capped else uncapped

    @torch.inference_mode()
    def token_logits(
        self, residual: Float[Tensor, "n d_model"], ids: Int[Tensor, "n choice"], *, normed: bool, capped: bool = True
    ) -> Float[Tensor, "n choice"]:
        """Return the logits of a few tokens for each vector, in float32; far cheaper than `logits`."""
        ids = ids.to(self.weight.device)
        if not self.is_linear:
            return self.logits(residual, normed=normed).gather(1, ids)
        x = self.normed(residual, normed=normed).float()
        unembedded = torch.einsum("nd,ncd->nc", x, self.weight[ids].float())
        if self.bias is not None:
            unembedded = unembedded + self.bias[ids].float()
        uncapped = self.ending.uncapped(unembedded, ids)
        return self.ending.capped(uncapped) if capped else uncapped

    @torch.inference_mode()
    def token_rows(
        self, ids: Int[np.ndarray, " n"]
    ) -> tuple[Float64[np.ndarray, "n d_model"], Float64[np.ndarray, " n"]]:
        """Return the weights and the bias (0 where there is none) of some tokens, before a cap."""
        at = torch.from_numpy(ids.astype(np.int64)).to(self.weight.device)
        bias = torch.zeros(len(ids)) if self.bias is None else self.bias[at]
        rows, scaled = self.weight[at].double().cpu() * self.ending.factor, bias.double().cpu()
        return rows.numpy(), self.ending.uncapped(scaled, at.cpu()).numpy()

    @property
    def rows_at_once(self) -> int:
        """How many vectors' logits stay within the memory budget."""
        budget = _LOGIT_BYTES.get(self.weight.device.type, _LOGIT_BYTES["cpu"])
        return max(1, budget // (4 * self.weight.shape[0]))

    def portions(self, n: int) -> Iterator[slice]:
        """Yield slices of n rows, each of so many that their logits stay within the memory budget."""
        rows = self.rows_at_once
        yield from (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def of_model(loaded: LoadedModel, final_norm: str | None, *, logits_are_unembedded: bool = True) -> Unembedding:
    """Return the unembedding of a loaded model.

    Args:
        loaded: The model.
        final_norm: As in a run's meta.
        logits_are_unembedded: As in a run's meta; where they are more, what the model makes of them is found from it.

    Raises:
        UnsupportedArchitecture: No single module leads from the last layer to the last hidden state, or there is no
            head behind that.
    """
    norm = None if final_norm in {None, IDENTITY} else loaded.model.get_submodule(str(final_norm))
    if logits_are_unembedded and final_norm is not None:
        return Unembedding(norm, loaded.model.get_output_embeddings())  # type: ignore[operator]
    structure = find_structure(loaded.model, loaded.vocab_size, loaded.task)
    head = own_head(loaded, structure) if structure.logits is None else loaded.model.get_output_embeddings()  # type: ignore[operator]
    if final_norm is None or head is None:
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} has no single final norm, or no head that states can be put in front of: "
            "there is no lens for it, and its logits cannot be split up."
        )
    return Unembedding(norm, head, structure.logits or _AS_IT_IS)


def of_run(store: TraceStore, loaded: LoadedModel) -> Unembedding:
    """Return the unembedding of a run's model, which is loaded already (`load_run_model`).

    Raises:
        UnsupportedArchitecture: See `of_model`.
    """
    about = store.about
    try:
        return of_model(loaded, about.final_norm, logits_are_unembedded=about.logits_are_unembedded)
    except UnsupportedArchitecture as reason:
        raise UnsupportedArchitecture(f"{reason} {what_works(store)}") from None


def load_unembedding(
    store: TraceStore, model_path: Path | None = None, device: str = "auto", *, trust_remote_code: bool = False
) -> Unembedding:
    """Load the unembedding of the model a run was made with.

    A run that holds its own (`unembed/`) needs no model; else, or where `model_path` is given, the model is loaded.

    Args:
        store: The run.
        model_path: Where the model is now, if it has moved since the run.
        device: "auto" (a GPU if there is one) or a torch device.
        trust_remote_code: Run Python that the model brings along; what the run recorded about it does not count.

    Raises:
        ModelError: The model cannot be loaded, or its weights are not those of the run.
        DamagedRunError: The run's own unembedding is not as written.
        UnsupportedArchitecture: See `of_model`.
    """
    about, folder = store.about, store.run_dir / UNEMBED_DIR
    ending = _recorded_ending(about)
    in_run = model_path is None and PlainFolder(store.run_dir).has(folder / UNEMBED_FILE)
    if not in_run or ending is None or about.final_norm is None:
        return of_run(store, load_run_model(store, model_path, device, trust_remote_code=trust_remote_code))
    _refuse_changed(store, folder)
    norm, head, shift = load_unembedding_file(folder, about.final_norm, resolve_device(device))
    return Unembedding(norm, head, replace(ending, shift=shift))


def _recorded_ending(about: RunMeta) -> LogitMap | None:
    """Return what a run recorded of its model's step behind the unembedding; None where there is none, or another."""
    if about.logit_factor is None:
        return _AS_IT_IS if about.logits_are_unembedded else None
    return LogitMap(about.logit_factor, about.logit_cap)


def _refuse_changed(store: TraceStore, folder: Path) -> None:
    refuse_strange_inside(store.run_dir, folder)
    plain = PlainFolder(store.run_dir)
    for path in sorted(folder.iterdir()):
        listed = read_manifest(store.run_dir).get(f"{UNEMBED_DIR}/{path.name}")
        if listed is not None and problem_of(plain, path, listed) is not None:
            raise DamagedRunError(f"{path} is not as written. Restore it, or name the model with --model_path.")


def load_run_model(
    store: TraceStore,
    model_path: Path | None = None,
    device: str = "auto",
    attention: Attention = "sdpa",
    *,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load the model a run was made with, and check that it is the same.

    Where it is the run that names it, what is about to be loaded is logged first (`decision_traces`).

    Args:
        store: The run.
        model_path: Where the model is now, if it has moved since the run.
        device: "auto" (a GPU if there is one) or a torch device.
        attention: Which attention implementation to load it with.
        trust_remote_code: Run Python that the model brings along; what the run recorded about it does not count.

    Raises:
        ModelError: The model cannot be loaded, or its weights are not those of the run.
    """
    about = store.about
    if model_path is None and (in_memory := recall(about.weights_digest)):
        return _matching(store, in_memory, attention)
    source = replace(_source(store, model_path, device, attention), trust_remote_code=trust_remote_code)
    try:
        return _loaded(store, source)
    except ModelError as error:
        if model_path is not None or not was_in_memory(about.weights_digest):
            raise
        raise ModelError(
            f"The model in memory that {store.run_dir} was made with is gone, or has other weights by now. Keep it for "
            f"as long as its runs are analysed, or name a folder with its weights (model_path). {error}"
        ) from error


def _loaded(store: TraceStore, source: ModelSource) -> LoadedModel:
    about = store.about
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(about.seed)  # what the checkpoint lacks is drawn as it was for the run
        loaded = load_model(source, _task(store))
    if about.weights_digest not in {None, weights_digest(loaded.model)}:
        raise ModelError(
            f"The weights of {source.location} are not those the run was made with (their digests differ). "
            "Give the folder of the right ones."
        )
    return loaded


def _task(store: TraceStore) -> ModelTask:
    return store.about.task or ("causal" if store.arch == "dec" else "multiple_choice")


def _matching(
    store: TraceStore, in_memory: Sequence[tuple[nn.Module, PreTrainedTokenizerBase]], attention: Attention
) -> LoadedModel:
    """Return a model that is in memory and whose weights are still those of the run."""
    for model, tokenizer in in_memory:
        if weights_digest(model) == store.about.weights_digest:
            return loaded_from_memory(model, tokenizer, _task(store), attention)
    raise ModelError(
        f"The {type(in_memory[0][0]).__name__} in memory that {store.run_dir} was made with has other weights by now. "
        "Trace it again, or name a folder with the weights of the run (model_path)."
    )


def find_tokenizer(store: TraceStore, model_path: Path | None = None, *, trust_remote_code: bool = False) -> Any | None:
    """Return the tokenizer of the model a run was made with, None where it is not to be had.

    A run that holds its own (`unembed/`) needs no model; else it is loaded as `load_run_model` loads.
    """
    folder = store.run_dir / UNEMBED_DIR
    if model_path is None and holds_words(folder):
        _refuse_changed(store, folder)
        return load_words(folder)
    if model_path is None and (in_memory := recall(store.about.weights_digest)):
        return in_memory[0][1]
    try:
        return load_tokenizer(replace(_source(store, model_path, "cpu"), trust_remote_code=trust_remote_code))
    except ModelError:
        return None


def _source(store: TraceStore, model_path: Path | None, device: str, attention: Attention = "sdpa") -> ModelSource:
    """Return the location of a run's model; a location that only the run names is logged before loading."""
    about = store.about
    if not about.model:
        raise ModelError(f"{store.run_dir} does not say by which model it was made. Name its folder with --model_path.")
    named_by_run = model_path is None and about.model != DEMO_MODEL
    if model_path is None:
        model_path = _path_of(store) if named_by_run else demo.MODEL_DIR
    dtype, revision = about.model_dtype or "auto", about.setting("revision")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ModelError(
            f"{store.run_dir} names {dtype!r} as the type its model computed in, which is none of the types here."
        )
    source = ModelSource(
        about.model, model_path, about.setting("gguf_file"), revision, device, cast(ModelDtype, dtype), attention
    )
    if named_by_run:
        where = "the Hugging Face hub or its cache:" if model_path is None else "the folder"
        _tell(f"Loading the model that {store.run_dir.name} names, from {where} {source.location}")
    return source


@cache
def _tell(sentence: str) -> None:
    """Say something once: on stderr, unless logging was set up otherwise."""
    _LOG.warning(printable(sentence))


def _path_of(store: TraceStore) -> Path | None:
    """Return the location of the model that the run recorded: seen from here, or else from the run's folder."""
    if store.about.model_path is None:
        return None
    path = Path(store.about.model_path)
    beside = store.run_dir / path
    return beside if not path.exists() and beside.exists() else path


def as_numpy(values: Tensor) -> Float32[np.ndarray, "..."]:
    """Return a tensor as float32 on the CPU."""
    array: np.ndarray = values.float().cpu().numpy()
    return array
