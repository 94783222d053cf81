"""The digest that tells one model's weights from another's, computed here from the bytes alone."""

import hashlib

import numpy as np
import torch
from torch import nn

from decision_traces.model.digest import weights_digest

WEIGHT = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, -0.5]], np.float32)
BIAS = np.array([7.0, -1.0], np.float32)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def model() -> nn.Linear:
    made = nn.Linear(3, 2)
    made.load_state_dict({"weight": torch.from_numpy(WEIGHT.copy()), "bias": torch.from_numpy(BIAS.copy())})
    return made


def test_it_is_over_names_types_shapes_and_bytes() -> None:
    lines = f"bias torch.float32 (2,) {sha(BIAS.tobytes())}\nweight torch.float32 (2, 3) {sha(WEIGHT.tobytes())}\n"
    assert weights_digest(model()) == sha(lines.encode())


def test_one_bit_of_one_weight_makes_another() -> None:
    ours, other = model(), model()
    with torch.no_grad():
        other.bias[1] = float(np.nextafter(np.float32(-1), np.float32(0)))
    assert weights_digest(ours) == weights_digest(model()) != weights_digest(other)
    assert weights_digest(model().half()) != weights_digest(ours)
