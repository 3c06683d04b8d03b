"""Small readable networks in plain torch.nn, built by name, or a factory of the user's own.

May import torch only. Every network is written so that channels, heads and hidden neurons can be cut out of it: sizes
are read from the tensors that flow through, never repeated as numbers in `forward`.
"""

from gossamer.models.build import build, names
from gossamer.models.convnet import ConvNet
from gossamer.models.mlp import MLP
from gossamer.models.resnet import ResNet, resnet20, resnet50
from gossamer.models.vgg import VGG, vgg16
from gossamer.models.vit import ViT

__all__ = ["MLP", "VGG", "ConvNet", "ResNet", "ViT", "build", "names", "resnet20", "resnet50", "vgg16"]
