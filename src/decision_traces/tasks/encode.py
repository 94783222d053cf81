"""Encode: what an encoder makes of a text, without any decision."""

from typing import Final

from decision_traces.tasks.task import Task

ENCODE: Final = Task(objective="encode", run_word="encode", model="encode", prefixes=("enc",))
