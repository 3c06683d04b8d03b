"""How many zeros ReLUs leave over a whole ImageNet training, as the authors of SparseTrain published it.

Means over all epochs from the spreadsheets beside their code (github.com/andygongyb/SparseTrainTests), rounded to two
digits. VGG-16: every layer. ResNet-34 and ResNet-50: ranges by depth, read here as lines from the first to the last
ReLU of the group. Fixup ResNet-50: not published; those of ResNet-50 stand in. The ReLU of a ResNet's stem is not in
the table: half, as at random initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

VGG16 = (0.49, 0.76, 0.74, 0.84, 0.77, 0.79, 0.88, 0.82, 0.86, 0.93, 0.80, 0.80, 0.91)
VGG16_HEAD = (0.76, 0.75)
STEM = 0.5

Range = tuple[float, float]
# Per group: blocks, zeros after the ReLUs inside blocks, zeros after the ReLU that joins branch and shortcut.
RESNET34: tuple[tuple[int, Range, Range], ...] = (
    (3, (0.48, 0.69), (0.15, 0.20)),
    (10, (0.78, 0.90), (0.41, 0.52)),
    (3, (0.77, 0.87), (0.77, 0.87)),
)
RESNET50: tuple[tuple[int, Range, Range], ...] = (
    (3, (0.22, 0.54), (0.22, 0.54)),
    (10, (0.42, 0.80), (0.39, 0.64)),
    (3, (0.74, 0.86), (0.74, 0.86)),
)


def _line(ends: Range, count: int) -> list[float]:
    first, last = ends
    return [first + (last - first) * i / max(1, count - 1) for i in range(count)]


def residual(groups: Sequence[tuple[int, Range, Range]], inner: int) -> list[float]:
    """Zeros after every ReLU in order of execution, stem first; `inner` ReLUs inside each block.

    >>> from gossamer.bench.conv import densities
    >>> zeros = densities.residual(densities.RESNET34, inner=1)
    >>> len(zeros), zeros[:3]
    (33, [0.5, 0.48, 0.15])
    """
    out = [STEM]
    for blocks, inside, join in groups:
        inside_zeros, join_zeros = _line(inside, blocks * inner), _line(join, blocks)
        for block in range(blocks):
            out += [*inside_zeros[block * inner : (block + 1) * inner], join_zeros[block]]
    return out


AUTHORS: dict[str, list[float]] = {
    "vgg16_plain": [*VGG16, *VGG16_HEAD],
    "resnet34": residual(RESNET34, inner=1),
    "resnet50": residual(RESNET50, inner=2),
    "fixup_resnet50": residual(RESNET50, inner=2),
}
PUBLISHED: dict[str, dict[str, float]] = {
    "vgg16_plain": {"training": 2.19, "inference": 1.88},
    "resnet34": {"training": 1.37, "inference": 1.64},
    "resnet50": {"training": 1.31, "inference": 1.44},
    "fixup_resnet50": {"training": 1.51},
}
"""Speed-ups of the convolutions but the first, on six cores of a Skylake-X, over MKL-DNN's direct ones."""
