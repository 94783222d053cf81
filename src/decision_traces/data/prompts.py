"""Five-choice questions as examples: a prompt for a decoder, a question with choices for an encoder."""

from collections.abc import Mapping
from typing import Final

from decision_traces.data import tinyworld
from decision_traces.data.choices import ChoiceQuestion, load_choice_questions
from decision_traces.data.example import Example
from decision_traces.data.registry import DataSource

TEMPLATES: Final[Mapping[str, str]] = {
    "csqa": "Question: {question}\\n{letter}. {choice}\\n...\\nAnswer:",
    "tinyworld": "Question: {question} {letter} {choice}, ... Answer:",
}
"""What a prompt looks like, by data set, for the meta."""


def prompt_of(dataset: str, question: ChoiceQuestion) -> str:
    """Return the prompt of a question; the answer is to follow, with a space in front.

    Args:
        dataset: One of `TEMPLATES`: tinyworld's model knows its own form, CommonsenseQA has a line a choice.
        question: The question.
    """
    if dataset == "tinyworld":
        return tinyworld.question_prompt(question.question, question.choices)
    listed = [f"{letter}. {choice}" for letter, choice in zip(question.labels, question.choices, strict=True)]
    return "\n".join([f"Question: {question.question}", *listed, "Answer:"])


def read_prompts(source: DataSource) -> list[Example]:
    """Return the questions as prompts, with what belongs to each as fields; see `load_choice_questions`."""
    return [
        Example(
            question.example_id,
            prompt_of(source.dataset, question),
            {
                "question": question.question,
                "answerKey": question.answer_key,
                "correct_idx": question.answer_index,
                "csqa_choices": list(question.choices),
                "choice_labels": list(question.labels),
            },
        )
        for question in load_choice_questions(source)
    ]


def read_questions(source: DataSource) -> list[Example]:
    """Return the questions as they are, with their choices as fields; see `load_choice_questions`."""
    return [
        Example(
            question.example_id,
            question.question,
            {
                "question": question.question,
                "answerKey": question.answer_key,
                "label_idx": question.answer_index,
                "choice_labels": list(question.labels),
                "choice_texts": list(question.choices),
            },
        )
        for question in load_choice_questions(source)
    ]
