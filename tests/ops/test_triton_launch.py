"""Law: a launch takes the first block sizes that compile, and refuses what Triton has no product of. Needs no GPU."""

import pytest
import torch

compiler = pytest.importorskip("triton", reason="triton is not installed: pip install triton")
from gossamer.kernels.triton.dsd import dsd  # noqa: E402
from gossamer.kernels.triton.launch import launch  # noqa: E402


def test_a_dtype_without_products_is_named():
    offsets, indices = torch.tensor([0, 1]), torch.zeros(1, dtype=torch.uint16)
    with pytest.raises(TypeError, match=r"b must be one of torch.float32.*got torch.int32"):
        dsd(torch.ones(1, 1, 1), offsets, indices, None, None, torch.ones(1, 1).int(), 1, False, False, None)


def test_the_next_block_size_where_one_does_not_compile():
    """Triton 3.3 to 3.6 cannot compile every kernel; any other failure is not swallowed."""
    tried = []

    class Kernel:
        __name__ = "kernel"

        def __getitem__(self, grid):
            def run(*args, BM, message="PassManager::run failed", **constants):
                tried.append((grid, BM))
                if BM > 16:
                    raise RuntimeError(message)

            return run

    choices = [{"BM": 64}, {"BM": 32}, {"BM": 16}]
    kernel, x = Kernel(), torch.ones(2)
    for _ in range(2):
        assert launch(kernel, lambda blocks: (blocks["BM"],), iter(choices), x) == {"BM": 16}
    assert tried == [((64,), 64), ((32,), 32), ((16,), 16), ((16,), 16)]
    with pytest.raises(RuntimeError, match=f"kernel: Triton {compiler.__version__} compiles none"):
        launch(kernel, lambda blocks: (1,), iter(choices[:2]), x)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(kernel, lambda blocks: (1,), iter(choices), x, message="illegal memory access")
