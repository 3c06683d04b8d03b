"""The router: from a token's state, the unit it ran last and how many it ran, the logits of what it runs next.

    hidden = W LN(h) + last[l] + step[k]         width/16 wide, at least 16
    z      = V GELU(hidden) + prior[l]           one for each unit, and EXIT

after Dotzel, Akhauri et al., "Radial Networks: Dynamic Layer Routing for High-Performance Large Language Models"
(2024), which gives no code. The norm has no scale of its own and W no bias: W and `last` take them up. `prior`, the
output's bias, is one for each unit that ran last, so that "the next unit" can be what is likely everywhere: it begins
at b0 + log(how many targets are allowed) there, V at zero. The argmax is then the base network, and a jump has the
probability e^-b0. GELU is the one by tanh: torch takes 10 microseconds to enter the other, as long as all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

START = 0
"""What ran last, before anything did; unit u is u + 1."""
Mode = Literal["sequential", "skip", "free"]
_BIAS = 6.0


class Router(nn.Module):
    """Logits of the next unit.

    Args:
        units: how many there are; EXIT is the target `units`.
        width: of the states.
        mode: "skip": targets lie behind the last unit; "free": any may follow.
        steps: how many hops a token can have made when it asks; None: one per unit.
        hidden: width inside; None: max(16, width / 16).
        bias: b0; jumps begin with the probability e^-b0 per hop.

    Raises:
        ValueError: an argument is out of its range.

    >>> router = Router(4, 64)
    >>> router(torch.randn(2, 64), START, 0).argmax(1).tolist()          # the base network: unit 0 is first
    [0, 0]
    >>> router(torch.randn(2, 64), 4, 4, first=4).shape                  # after the last unit only EXIT is left
    torch.Size([2, 1])
    """

    @torch.inference_mode(False)  # what is made there serves training too
    def __init__(
        self,
        units: int,
        width: int,
        *,
        mode: Mode = "skip",
        steps: int | None = None,
        hidden: int | None = None,
        bias: float = _BIAS,
    ) -> None:
        super().__init__()
        steps = units + 1 if steps is None else steps
        hidden = max(16, width // 16) if hidden is None else hidden
        for name, value in (("units", units), ("width", width), ("steps", steps), ("hidden", hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if mode not in ("skip", "free"):
            raise ValueError(f'mode must be "skip" or "free", got {mode!r}')
        if not (isinstance(bias, (int, float)) and math.isfinite(bias)):
            raise ValueError(f"bias must be a finite number, got {bias!r}")
        self.units, self.width, self.steps, self.hidden = units, width, steps, hidden
        self.down = nn.Parameter(torch.randn(hidden, width, dtype=torch.float32, device="cpu") / math.sqrt(width))
        self.last = nn.Parameter(torch.zeros(units + 1, hidden, dtype=torch.float32, device="cpu"))
        self.step = nn.Parameter(torch.zeros(steps, hidden, dtype=torch.float32, device="cpu"))
        self.up = nn.Parameter(torch.zeros(units + 1, hidden, dtype=torch.float32, device="cpu"))
        self.prior = nn.Parameter(torch.zeros(units + 1, units + 1, dtype=torch.float32, device="cpu"))
        with torch.no_grad():
            for last in range(units + 1):
                self.prior[last, last] = bias + math.log(units + 1 - last if mode == "skip" else units + 1)

    def forward(self, h: Tensor, last: int | Tensor, step: int | Tensor, first: int = 0) -> Tensor:
        """Logits [tokens, units + 1 - first] of the targets from `first` on.

        Args:
            h: [tokens, width].
            last: START or 1 + the unit that ran last; for all tokens, or int64[tokens].
            step: how many units ran; for all, int64[tokens], or float[tokens] for a mean, between
                two embeddings.
            first: targets before it are not asked for.
        """
        with torch.autocast(h.device.type, enabled=False):  # decisions hang on small differences
            return self._logits(h, last, step, first)

    def _logits(self, h: Tensor, last: int | Tensor, step: int | Tensor, first: int) -> Tensor:
        x = torch.layer_norm(h if h.dtype == self.down.dtype else h.to(self.down.dtype), (self.width,))
        hidden = torch.addmm(self.last[last] + self._step(step), x, self.down.t())
        prior = self.prior[last] if isinstance(last, int) else self.prior.index_select(0, last)
        return torch.addmm(prior[..., first:], gelu(hidden, approximate="tanh"), self.up[first:].t())

    def picker(self) -> Callable[[Tensor, int, int, int], int]:
        """A function (h [tokens, width], last, step, first) -> the argmax of the mean of their logits, from `first` on.

        It is quick for one token, since it has the parameters as they are now at hand; made anew for each pass. No
        gradients.
        """
        width, dtype = (self.width,), self.down.dtype
        tables = (self.down, self.last, self.step, self.up, self.prior)
        down, lasts, steps, up, priors = (table.detach() for table in tables)

        def pick(h: Tensor, last: int, step: int, first: int) -> int:
            if len(h) != 1:
                return first + int(self(h, last, step, first).mean(0).argmax())
            x = torch.layer_norm(h[0] if h.dtype == dtype else h[0].to(dtype), width)
            hidden = gelu(torch.addmv(lasts[last], down, x).add_(steps[step]), approximate="tanh")
            return first + int(torch.addmv(priors[last], up, hidden)[first:].argmax())

        return pick

    def _step(self, step: int | Tensor) -> Tensor:
        if isinstance(step, int) or not step.is_floating_point():
            return self.step[step]
        step = step.nan_to_num()  # such states give such logits, and no index
        below = step.floor().clamp(max=self.steps - 1)
        above = (below + 1).clamp(max=self.steps - 1)
        share = (step - below).to(self.step.dtype)
        return torch.lerp(self.step[below.long()], self.step[above.long()], share.unsqueeze(1))

    @torch.no_grad()
    def expect(self, skipped: Sequence[float]) -> None:
        """Begin where tokens skip each unit with these probabilities, each in (0, 1), whatever their states are."""
        run, skip = ([math.log(p) for p in side] for side in ([1 - p for p in skipped], skipped))
        for last in range(self.units + 1):
            for target in range(last, self.units + 1):
                self.prior[last, target] = sum(skip[last:target]) + (run[target] if target < self.units else 0.0)

    @torch.no_grad()
    def lean(self, amount: float) -> None:
        """Add to the logits of the next unit, after each."""
        self.prior.diagonal()[:-1] += amount

    def macs(self) -> int:
        """Multiply-adds of one decision."""
        return self.width * self.hidden + self.hidden * (self.units + 1)
