"""The kernels of a run's passes, and that what was set before comes back."""

import pytest
import torch

from decision_traces.model.kernels import any_shape_of_batch


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_left_out_and_what_was_set_comes_back_even_after_an_error(before: bool) -> None:
    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with pytest.raises(RuntimeError, match="in between"), any_shape_of_batch():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise RuntimeError("in between")
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
