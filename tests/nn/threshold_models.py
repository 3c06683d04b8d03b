"""Models that thresholds are put into, and what must not change in them."""

import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A block of the usual shape: two linears around an activation, with a skip."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return x + self.down(F.silu(self.up(F.layer_norm(x, x.shape[-1:]))))


class Tower(nn.Module):
    def __init__(self, dim: int = 32, hidden: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual(dim, hidden) for _ in range(depth))
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that a refused call must leave alone."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {
        "classes": [(name, type(module), module.training) for name, module in model.named_modules()],
        "state": {name: (tensor.tolist(), model.state_dict()[name].stride()) for name, tensor in state.items()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }
