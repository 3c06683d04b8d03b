"""The table: methods x optimizers x networks, at sizes that train in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.training import METHODS, Method

STEPS = 24
CLASSES = 5


class Residual(nn.Module):
    """Stem, a block with identity shortcut, a block with projection, pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.bna = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.bnb = nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.c, self.bnc = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.d, self.bnd = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.down, self.bndown = nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bnb(self.b(self.bna(self.a(x)).relu()))).relu()
        x = (self.bndown(self.down(x)) + self.bnd(self.d(self.bnc(self.c(x)).relu()))).relu()
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """One transformer block with a packed projection, mean over tokens, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.fc((x + self.down(self.up(x).relu())).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, CLASSES)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Pointwise, depthwise, grouped and transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


class Concat(nn.Module):
    """A dense block: what one layer makes is read by two others, concatenated with what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bna = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.bnb = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(20, 16, 1)
        self.fc = nn.Linear(16 + 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bna(self.a(x)).relu()
        b = self.bnb(self.b(a)).relu()
        c = self.c(torch.cat([a, b], 1)).relu()
        return self.fc(torch.cat([c, b], 1).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "residual": Residual,
    "mobile": mobile,
    "concat": Concat,
    "attention": Attention,
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2, weight_decay=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True, weight_decay=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1, weight_decay=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2, weight_decay=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2, weight_decay=1e-2),
}

# every method with several updates in STEPS steps
SETTINGS: dict[str, dict[str, Any]] = {
    "static": {},
    "set": {"update_every": 4},
    "rigl": {"update_every": 4},
    "snfs": {"update_every": 4},
    "mest": {"update_every": 4, "sensitivity": 1.0},
    "granet": {"update_every": 4},
    "gradual": {"update_every": 4},
    "srigl": {"update_every": 4, "min_salient": 0.8},
    "chase": {"explore_every": 4, "channel_every": 4, "channel_sparsity": 0.3},
}


def images(n: int = 16, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """n images [3, 4, 4] and labels."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, 4, generator=g, dtype=dtype), torch.randint(CLASSES, (n,), generator=g)


def build(
    method: str,
    optimizer: str = "momentum",
    network: str = "mlp",
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Method]:
    """Network (always the same weights), optimizer and method."""
    torch.manual_seed(0)
    model = NETWORKS[network]().to(dtype)
    if network == "mobile" and method == "srigl":
        options.setdefault("exclude", ["9.weight"])  # transposed
    opt = OPTIMIZERS[optimizer](model.parameters())
    arguments = {"density": 0.3, "total_steps": STEPS, **SETTINGS[method], **options}
    return model, opt, METHODS[method](model, opt, **arguments)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, first: int = 0) -> Iterator[int]:
    """Train on fresh batches; yields after every step. The batch of step t depends on t alone."""
    dtype = next(model.parameters()).dtype
    for t in range(first, first + steps):
        optimizer.zero_grad()
        loss(model, *images(seed=t, dtype=dtype)).backward()
        optimizer.step()
        yield t + 1


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, *, first: int = 0) -> None:
    for _ in train(model, optimizer, steps, first=first):
        pass
