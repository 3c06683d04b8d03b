"""Law: bits depend neither on the run nor on the number of threads."""

import pytest
import torch

import gossamer as gs
from gossamer.testing import assert_same_bits, convolution

NAMES = ["3x3", "3x3, stride 2, odd", "1x1", "5x5", "3x3, 7 x 7, many images", "odd channels"]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_threads_and_runs(name, relu):
    case = convolution(name)
    x, weight, bias = (t.requires_grad_() for t in case.operands("half"))
    dy, found = case.gradient("relu"), []
    for threads in (1, 2, 3, 8, 8):
        torch.set_num_threads(threads)
        y = gs.ops.conv2d(
            x, weight, bias, case.stride, case.padding, case.dilation, skip="input", relu=relu, backend="cpu"
        )
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        found.append((y.detach(), dx, dw))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_same_bits(one, two)


def test_an_image_does_not_depend_on_its_batch():
    """Forward and the gradient by input: each element is a sum in one order, wherever the image lies."""
    case = convolution("3x3, 7 x 7, many images")
    x, weight, bias = case.operands("half")
    whole = gs.ops.conv2d(x, weight, bias, padding=1, skip="input")
    for i in (0, 5, 16):
        alone = gs.ops.conv2d(x[i : i + 1], weight, bias, padding=1, skip="input")
        assert_same_bits(alone, whole[i : i + 1])
