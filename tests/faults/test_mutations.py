"""Metadata and tables that say what they should not, with every checksum right: sentences and findings, no more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("attacks.py")


ONCE_THROUGH = (11135, 11151, 12930, 11852, 12369, 12730, 13049, 13091, 13157, 21666, 22371, 24692)
"""Seeds of the long test that were something else before."""


def attacks(first: int, count: int, *more: int) -> list[list[object]]:
    """Return seed, way, what was done and what came, of each that ended in no sentence of ours."""
    command = [sys.executable, SCRIPT, *map(str, (first, count, *more))]
    done = subprocess.run(command, env={"PYTHONPATH": str(SCRIPT.parents[1])}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("first", "more"), [(0, ()), (150, ONCE_THROUGH)])
def test_metadata_that_lies_is_a_sentence_or_a_finding(first, more):
    assert attacks(first, 150, *more) == []


@pytest.mark.long
@pytest.mark.parametrize("first", range(10_000, 15_000, 500))
def test_5000_mutations_end_in_a_sentence_or_a_finding(first):
    assert attacks(first, 500) == []
