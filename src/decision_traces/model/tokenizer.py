"""Loading a tokenizer: a fast one with a vocabulary, or none."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from decision_traces.errors import ModelError
from decision_traces.model.faults import LOAD_ERRORS, TokenizersFault, WithNames, without_tokenizer


def load_tokenizer_of(location: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or a hub repository.

    Raises:
        ModelError: There is none, it has no vocabulary, or it is a slow one, which gives no character offsets.
    """
    try:
        with WithNames():
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
    except (*LOAD_ERRORS, TokenizersFault) as error:
        raise without_tokenizer(location, error) from error
    if isinstance(tokenizer, ByT5Tokenizer):
        return fast_bytes(tokenizer)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{location} has only a slow tokenizer, which gives no character offsets. Save a fast one beside it."
        )
    if not _words(tokenizer):
        raise ModelError(
            f"{location} has a tokenizer without a vocabulary: it would read every text as nothing. "
            "Put the model's own tokenizer files (tokenizer.json, or its vocabulary) beside the weights."
        )
    return tokenizer


def _words(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the vocabulary but for special and added tokens, and single marks such as a sentence piece's space."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words: set[str] = tokenizer.get_vocab().keys() - added - set(tokenizer.all_special_tokens)
    return {word for word in words if word != "▁"}


def fast_bytes(slow: Any) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer with the ids of ByT5's slow one: special tokens, one for each byte, extra tokens."""
    added = dict(sorted(slow.added_tokens_decoder.items()))
    letters = bytes_to_unicode()  # what the byte-level alphabet calls each byte
    vocabulary = {letters[byte]: byte + slow.offset for byte in letters}
    inner = Tokenizer(models.BPE(vocab={token.content: i for i, token in added.items()} | vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    end = (slow.eos_token, slow.eos_token_id)
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
    )
    inner.add_special_tokens(list(added.values()))
    told = {name: getattr(slow, name) for name in ("pad_token", "eos_token", "unk_token", "model_max_length")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=slow.model_input_names, **told)
