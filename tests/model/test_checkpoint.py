"""A checkpoint is read as what it is: by its architecture and its weights, or refused with what would work."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from support.encoders import pair_tokenizer

from decision_traces.errors import ModelError
from decision_traces.format.arrays import ModelTask
from decision_traces.model.load import LoadedModel, ModelSource, choose_task, load_model

ENCODE = re.escape("`decision-traces extract --task encode` traces its states without a head")
LM, MLM, SEQ2SEQ = hf.AutoModelForCausalLM, hf.AutoModelForMaskedLM, hf.AutoModelForSeq2SeqLM
CLASSIFIER, TAGGER, READER = (
    hf.AutoModelForSequenceClassification,
    hf.AutoModelForTokenClassification,
    hf.AutoModelForQuestionAnswering,
)
IDS = torch.tensor([[50, 60, 70]])
TIED = {"tie_word_embeddings": True}


def load(folder: Path, task: ModelTask) -> LoadedModel:
    return load_model(ModelSource(model_path=folder), task)


# -- what it is for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto", "family", "options", "task", "built"),
    [
        (LM, "gpt2", {}, "causal", "GPT2LMHeadModel"),
        (LM, "qwen2", TIED, "causal", "Qwen2ForCausalLM"),
        (hf.GPT2DoubleHeadsModel, "gpt2", {}, "causal", "GPT2LMHeadModel"),
        (hf.AutoModel, "gpt2", {}, "encode", "GPT2Model"),
        (hf.AutoModel, "qwen2", TIED, "encode", "Qwen2Model"),
        (hf.Gemma3TextModel, "gemma3", {"use_bidirectional_attention": True}, "encode", "Gemma3TextModel"),
        (MLM, "bert", {}, "masked", "BertForMaskedLM"),
        (hf.AutoModelForPreTraining, "bert", {}, "masked", "BertForMaskedLM"),
        (hf.AutoModelForPreTraining, "electra", {}, "encode", "ElectraModel"),
        (hf.AutoModel, "mpnet", {}, "encode", "MPNetModel"),
        (SEQ2SEQ, "t5", {}, "seq2seq", "T5ForConditionalGeneration"),
        (hf.T5EncoderModel, "t5", {}, "encode", "T5EncoderModel"),
    ],
)
def test_the_task_is_what_architecture_and_weights_say(
    auto: Any, family: str, options: dict, task: ModelTask, built: str, checkpoint
) -> None:
    folder = checkpoint(auto, family, **options)
    assert choose_task(ModelSource(model_path=folder)) == task
    assert type(load(folder, task).model).__name__ == built


def test_a_head_that_is_named_and_not_there_is_not_made_up(checkpoint) -> None:
    """all-mpnet-base-v2 says MPNetForMaskedLM and holds a body alone."""
    folder = checkpoint(hf.AutoModel, "mpnet", {"architectures": ["MPNetForMaskedLM"]})
    assert choose_task(ModelSource(model_path=folder)) == "encode"
    with pytest.raises(ModelError, match=rf"lacks 6 of the model's weights .*predictions\. {ENCODE}"):
        load(folder, "masked")


def test_without_an_architecture_the_weights_say_it(checkpoint) -> None:
    unsaid = {"architectures": ...}
    assert choose_task(ModelSource(model_path=checkpoint(LM, "gpt2", unsaid))) == "causal"
    assert choose_task(ModelSource(model_path=checkpoint(MLM, "bert", unsaid))) == "masked"
    with pytest.raises(ModelError, match=rf"has another head \(score\), which would be dropped here.*: {ENCODE}"):
        load(checkpoint(CLASSIFIER, "gpt2", unsaid), "causal")


# -- heads that would be dropped -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto", "family", "options", "task"),
    [
        (CLASSIFIER, "gpt2", {}, "causal"),
        (TAGGER, "gpt2", {}, "causal"),
        (READER, "gpt2", {}, "causal"),
        (CLASSIFIER, "qwen2", TIED, "causal"),
        (CLASSIFIER, "t5", {}, "seq2seq"),
        (TAGGER, "t5", {}, "seq2seq"),
        (CLASSIFIER, "bert", {}, "masked"),
        (hf.BertForNextSentencePrediction, "bert", {}, "masked"),
    ],
)
def test_a_classifier_is_not_traced_as_a_model_of_words(
    auto: Any, family: str, options: dict, task: ModelTask, checkpoint
) -> None:
    folder = checkpoint(auto, family, **options)
    refused = rf"is a \w+, whose head would be dropped here: tracing classifiers is not there yet; {ENCODE}\."
    with pytest.raises(ModelError, match=refused):
        choose_task(ModelSource(model_path=folder))
    with pytest.raises(ModelError, match=refused):
        load(folder, task)


def test_a_multiple_choice_model_is_sent_to_its_own_command(checkpoint) -> None:
    folder = checkpoint(hf.AutoModelForMultipleChoice, "bert")
    with pytest.raises(ModelError, match=rf"`decision-traces csqa_enc` traces it over questions, and {ENCODE}"):
        choose_task(ModelSource(model_path=folder))
    assert load(folder, "multiple_choice").fresh == ()


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal"), ("t5", "seq2seq")])
def test_the_embedding_of_a_bare_model_is_not_taken_for_its_head(family: str, task: ModelTask, checkpoint) -> None:
    with pytest.raises(ModelError, match=rf"is a bare \w+Model, without a head that predicts words: {ENCODE}"):
        load(checkpoint(hf.AutoModel, family), task)


def test_the_encoder_of_an_encoder_decoder_is_traced_alone_where_it_has_a_class(checkpoint) -> None:
    encoder = load(checkpoint(SEQ2SEQ, "t5"), "encode")
    assert (type(encoder.model).__name__, encoder.unused) == ("T5EncoderModel", ())
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(bart\); this command traces encoders"):
        load(checkpoint(SEQ2SEQ, "bart"), "encode")


def test_an_encoder_is_sent_to_its_task(checkpoint) -> None:
    with pytest.raises(ModelError, match=rf"is not a decoder: .*such as gpt2\. {ENCODE}"):
        load(checkpoint(hf.AutoModel, "bert"), "causal")


# -- weights that are not used -------------------------------------------------------------------------------


def test_weights_that_are_not_used_are_named(checkpoint) -> None:
    classifier = load(checkpoint(CLASSIFIER, "gpt2"), "encode")
    assert classifier.unused == ("score.weight",)
    fewer = load(checkpoint(LM, "gpt2", {"n_layer": 2}), "causal")
    assert len(fewer.unused) == 11 and {name.rsplit(".", 3)[0] for name in fewer.unused} <= {
        "transformer.h.2",
        "transformer.h",
    }
    assert load(checkpoint(LM, "llama"), "causal").unused == ()


# -- what a config says that is none of a trace's business ------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        {"pad_token_id": 260},
    ],
    ids=str,
)
@pytest.mark.parametrize(("auto", "family", "task"), [(LM, "llama", "causal"), (MLM, "bert", "masked")])
def test_what_a_config_says_of_the_form_of_outputs_does_not_matter(
    said: dict, auto: Any, family: str, task: ModelTask, checkpoint
) -> None:
    model = load(checkpoint(auto, family, said), task).model
    assert set(model(input_ids=IDS)) - {"past_key_values"} == {"logits"}


@pytest.mark.parametrize(
    ("quantised", "reason"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "requires bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ quantized model requires"),
        ({"quant_method": "awq", "bits": 4}, "AWQ quantized model requires"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors.* is required"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
    ],
)
def test_a_quantised_model_is_refused_with_the_reason_of_transformers(quantised: dict, reason: str, checkpoint) -> None:
    folder = checkpoint(LM, "llama", {"quantization_config": quantised})
    with pytest.raises(ModelError, match=rf"holds no model that can be loaded \(.*{reason}.*\)"):
        load(folder, "causal")


def test_a_config_that_is_not_valid_is_refused_with_the_reason(checkpoint) -> None:
    with pytest.raises(ModelError, match=r"validate_architecture': .*not a multiple.*heads"):
        load(checkpoint(LM, "llama", {"hidden_size": 33}), "causal")


# -- how long a text may be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auto", "family", "options", "context"),
    [
        (LM, "gpt2", {"n_positions": 40}, 40),
        (LM, "mpt", {"max_seq_len": 16}, 16),
        (LM, "llama", {"max_position_embeddings": 50}, 50),
        (LM, "bloom", {}, None),
        (MLM, "roberta", {"max_position_embeddings": 96}, 95),
        (SEQ2SEQ, "t5", {"n_positions": 7}, None),  # a word that T5's class does not take
    ],
)
def test_the_context_is_the_models_own_by_whatever_name(
    auto: Any, family: str, options: dict, context: int | None, checkpoint
) -> None:
    task: ModelTask = {LM: "causal", MLM: "masked", SEQ2SEQ: "seq2seq"}[auto]
    assert load(checkpoint(auto, family, **options), task).context == context


def test_a_limit_that_is_not_above_zero_is_none(tmp_path: Path) -> None:
    config = hf.XLNetConfig(vocab_size=260, d_model=32, n_layer=1, n_head=4, d_inner=48)
    assert config.max_position_embeddings == -1
    hf.XLNetModel(config).save_pretrained(tmp_path)
    pair_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, "encode").context is None
