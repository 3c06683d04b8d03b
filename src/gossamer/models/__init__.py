"""Small readable networks in plain torch.nn, built by name, or a factory of the user's own.

May import torch only. Every network is written so that channels, heads and hidden neurons can be cut out of it: sizes
are read from the tensors that flow through, never repeated as numbers in `forward`. Only Fixup's channels stay: its
scalar shifts make every input channel of a convolution count, also one that is always zero.
"""

from gossamer.models.build import build, names
from gossamer.models.convnet import ConvNet
from gossamer.models.fixup import FixupResNet, fixup_resnet50
from gossamer.models.mlp import MLP
from gossamer.models.resnet import ResNet, resnet20, resnet34, resnet50
from gossamer.models.vgg import VGG, vgg16, vgg16_plain
from gossamer.models.vit import ViT

__all__ = [
    "MLP",
    "VGG",
    "ConvNet",
    "FixupResNet",
    "ResNet",
    "ViT",
    "build",
    "fixup_resnet50",
    "names",
    "resnet20",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg16_plain",
]
