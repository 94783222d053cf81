"""The allowance of the deep check: from the model's own noise, so that little is missed and nobody is wronged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from support.runs import copy_run, reseal
from transformers import AutoModelForCausalLM

from decision_traces import TraceStore
from decision_traces.analysis.noise import Distances, SumsInParts, apart, other_threads
from decision_traces.analysis.replay import replay_rows
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures

LINES = "The cat sat on the mat.\nOne more line of plain text.\n"


def single(found: list, right: list, dtype: type = np.float32) -> float:
    (figure,) = apart(np.array(found, dtype), np.array(right, np.float32), layered=False)
    return float(figure)


def test_a_difference_is_relative_to_the_largest_value_of_its_vector() -> None:
    assert single([[1, 2], [0, 4.5]], [[1, 2], [0, 4]]) == 0.125
    assert apart(np.ones((2, 1, 2)), np.array([[[1, 1]], [[1, 2]]]), layered=True).tolist() == [0, 0.5]
    assert single([], []) == 0


def test_a_vector_smaller_than_most_counts_as_one_of_their_size() -> None:
    # a rectified neuron that is 0 here and 3e-9 there; the median of the vectors' largest values is 3
    assert single([[3e-9], [3], [3]], [[0], [3], [3]]) == pytest.approx(1e-9)
    assert single([[0, 0], [1, 0]], [[0, 0], [0, 0]]) > 1e9, "a value where there is nothing"


def test_half_a_step_of_float16_is_taken_off_and_no_more() -> None:
    step = 2.0**-9  # of float16 from 2 to 4
    assert single([2 + step], [2 + step / 2], np.float16) == 0
    assert single([2 + step], [2], np.float16) == step / 2 / 2
    assert single([2.0**-24], [2.0**-25], np.float16) == 0, "of the smallest numbers too"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_far(value: float) -> None:
    assert single([value, 1], [1, 1]) == single([value, 1], [1, 1], np.float16) == np.inf


def test_the_allowance_is_eight_times_the_noise_of_the_layer_and_sixteen_steps_at_least() -> None:
    found, epsilon = Distances(), 2.0**-23
    found.add("a", np.array([0.0, 5e-4]), np.array([0.0, 1e-4]))
    found.add("b", np.array([1.5e-6, 1e-4]), np.array([0.0, 1e-6]))
    assert found.verdict(epsilon) == pytest.approx((1.5e-6, 16 * 2.0**-23, "b", 0.0), abs=0)
    found.add("c", np.array([0.0, 9e-4]), np.array([0.0, 0.0]))
    assert found.verdict(epsilon) == pytest.approx((9e-4, 8e-4, "c", 1e-4))
    assert Distances().verdict(epsilon)[:2] == (0, 0)


@pytest.mark.parametrize(("before", "inside"), [(1, 2), (2, 1)])
def test_the_number_of_threads_is_as_before_afterwards(before: int, inside: int) -> None:
    kept = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        with pytest.raises(ZeroDivisionError), other_threads():
            assert torch.get_num_threads() == inside
            raise ZeroDivisionError
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_add_up_to_the_same_in_another_order(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(40, 501).to(dtype), torch.nn.Linear(501, 30).to(dtype)
    joint = torch.nn.Parameter(layer.weight.T.contiguous())
    plain, right = layer(x), x.double() @ layer.weight.double().T + layer.bias.double()
    with SumsInParts():
        in_parts, gpt2 = layer(x), torch.addmm(layer.bias, x, joint)
    assert in_parts.dtype == dtype and torch.equal(in_parts, gpt2)
    assert not (dtype == torch.float32 and torch.equal(in_parts, plain))
    assert (in_parts.double() - right).abs().max() < 8 * torch.finfo(dtype).eps


# -- runs --------------------------------------------------------------------------------------------------


def run(folder: Path, out: Path, **options) -> Path:
    (text := out.with_suffix(".txt")).write_text(LINES)
    settings = {"capture": ("hidden", "qkv", "mlp_out"), "dtype": "float32", "text_file": text, "out_dir": out}
    return extract_next_token(NextTokenConfig(model="tiny", model_path=folder, **{**settings, **options}))


def changed(source: Path, target: Path, path: str, change: Callable[[np.ndarray], np.ndarray]) -> list[tuple[str, str]]:
    """Change one layer of one row with all digests right; return which arrays fail and where."""
    group, key = path.split("/")
    array = zarr.open_group(copy_run(source, target) / group, mode="r+")[key]
    array[1, 1] = change(np.asarray(array[1, 1]))
    reseal(target)
    return [(c.array, c.where) for c in failures(list(replay_rows(TraceStore(target), 2)))]


def one_value(by: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change of the largest value alone."""

    def change(values: np.ndarray) -> np.ndarray:
        at = np.unravel_index(np.abs(values).argmax(), values.shape)
        values[at] = by(values[at])
        return values

    return change


def test_one_value_that_is_off_by_a_hundred_thousandth_is_found(tiny_folder, tmp_path: Path) -> None:
    honest, threads = run(tiny_folder("llama"), tmp_path / "run"), torch.get_num_threads()
    assert not failures(list(replay_rows(TraceStore(honest), 2))) and torch.get_num_threads() == threads
    where = TraceStore(honest).example_id(1)
    found = changed(honest, tmp_path / "forged", "dec_self_qkv.zarr/k", one_value(lambda x: x * np.float32(1 + 1e-5)))
    assert found == [("dec_self_k", where)]


def test_one_value_that_is_off_by_two_steps_of_float16_is_found(tiny_folder, tmp_path: Path) -> None:
    honest = run(tiny_folder("gpt2"), tmp_path / "run", dtype="float16")
    assert not failures(list(replay_rows(TraceStore(honest), 2)))
    found = changed(honest, tmp_path / "forged", "dec_hidden.zarr/h", one_value(lambda x: x + 2 * np.spacing(x)))
    assert found == [("dec_hidden", TraceStore(honest).example_id(1))]


def computed_here(model: torch.nn.Module, made: Path) -> np.ndarray:
    """What the second layer's MLP writes in the second row, by plain transformers."""
    seen: list[torch.Tensor] = []
    model.model.layers[1].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with torch.no_grad():
        model(torch.tensor([TraceStore(made).encodings(1, trim=True)["input_ids"].tolist()]))
    return seen[0].numpy()


@pytest.mark.filterwarnings("ignore::decision_traces.errors.UncertifiedWarning")
def test_another_order_of_sums_is_no_fault_however_much_it_changes(tiny_folder, tmp_path: Path) -> None:
    """A model of neurons in pairs that all but cancel: what is left of sums of thousands is rounded as they are."""
    folder = tmp_path / "noisy"
    shutil.copytree(tiny_folder("llama"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
            matrix[24:] = matrix[:24]
        small = mlp.down_proj.weight[:, :24].clone()
        large = torch.randn(32, 24, generator=torch.Generator().manual_seed(0)) * 1e3
        mlp.down_proj.weight[:] = torch.cat([large + small, -large], dim=1)
    model.save_pretrained(folder)
    with SumsInParts():  # stands for another machine
        made = run(folder, tmp_path / "run", uncertified=True)
    off = np.abs(computed_here(model, made) - TraceStore(made).mlp_out(1, layer=1, trim=True))
    assert off.max() > 1e-3 * np.abs(TraceStore(made).mlp_out(1, layer=1, trim=True)).max()
    assert not failures(list(replay_rows(TraceStore(made), 2)))
    found = changed(made, tmp_path / "forged", "dec_mlp_out.zarr/x", lambda x: -x)
    assert found == [("dec_mlp_out", TraceStore(made).example_id(1))]
