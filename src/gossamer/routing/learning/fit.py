"""A routed model in training, and all that a run needs to go on where it stopped.

What a step draws at random depends on (seed, step) alone. A run that stopped after any step and was loaded again goes
on bit by bit as if it had not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.routing import saved
from gossamer.routing.flops import Costs
from gossamer.routing.learning.budget import Budget
from gossamer.routing.learning.layer_skip import LayerSkip
from gossamer.routing.learning.layer_skip import terms as exit_terms
from gossamer.routing.learning.objective import Objective, outputs
from gossamer.routing.radial import Radial
from gossamer.schedule import Schedule

Trained = Literal["router", "all"]
_RISE = 0.05  # share of the steps over which learning rates rise; they fall to a tenth at the end
_LEAST = 0.1
_LAST = 0.3
"""What decisions learn from is rougher than what soft routes do: learning rates are that much smaller."""
_CLIP = 1.0


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run; see `distill`."""

    steps: int
    train: Trained
    lr: float
    model_lr: float
    budget: float | None
    hard: float
    coldest: float
    seed: int
    objective: Objective
    layer_skip: LayerSkip | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {self.steps!r}")
        if self.train not in ("router", "all"):
            raise ValueError(f'train must be "router" or "all", got {self.train!r}')
        for name in ("lr", "model_lr", "coldest"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        if not (isinstance(self.hard, (int, float)) and 0 <= self.hard <= 1):
            raise ValueError(f"hard must be a share of the steps in [0, 1], got {self.hard!r}")
        if self.budget is not None:
            Budget(self.budget)

    @property
    def soft_steps(self) -> int:
        return self.steps - round(self.hard * self.steps)

    def rate(self, step: int) -> float:
        """What learning rates are multiplied by."""
        rise = max(1, round(_RISE * self.steps))
        last = _LAST if step >= self.soft_steps else 1.0
        return last * min((step + 1) / rise, Schedule("cosine", 1.0, _LEAST)(step / self.steps))


@dataclass(eq=False)
class History:
    """What was seen in each step: plain numbers by name.

    Attributes:
        records: step, loss and its parts, cost (share of the whole stack), depth (units a token runs), target,
            price, temperature.
        settled: the share that decisions cost at the end, counted on the last batches; None: there is no budget.

    >>> History([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}])["loss"]
    [2.0, 1.5]
    """

    records: list[dict[str, float]] = field(default_factory=list)
    settled: float | None = None

    def __getitem__(self, name: str) -> list[float]:
        return [record[name] for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def mean(self, name: str, last: int) -> float:
        """Of the last steps."""
        values = self[name][-last:]
        return sum(values) / len(values)


class Fit:
    """A run.

    Args:
        radial: what is trained. teacher: what it follows; None: nobody. context: keys that a token sees in the mean.
        optimizer: of parameters that are trained; None: AdamW. source: what the data is, as `distill` was told.

    Raises:
        ValueError: nothing can be trained, or the optimizer has none of it.
    """

    def __init__(
        self, radial: Radial, teacher: Any, settings: Settings, *, context: float,
        optimizer: torch.optim.Optimizer | None = None, source: str | None = None,
    ) -> None:  # fmt: skip
        self.radial, self.teacher, self.settings, self.source = radial, teacher, settings, source
        self.costs = Costs.of_radial(radial, context)
        self.budget = None if settings.budget is None else Budget(settings.budget, warmup=settings.steps // 4)
        self.history, self.step = History(), 0
        routing = {
            id(each) for part in (radial.policy, radial.adapters) if part is not None for each in part.parameters()
        }
        self.trained = {
            name: each for name, each in radial.named_parameters()
            if each.requires_grad and (settings.train == "all" or id(each) in routing)
        }  # fmt: skip
        if not self.trained:
            raise ValueError(
                f'train="{settings.train}" has nothing to train: the {type(radial.policy).__name__} of this model has '
                "no parameters that require gradients"
            )
        self.optimizer = self._adam(routing) if optimizer is None else optimizer
        mine = {id(each) for each in self.trained.values()}
        if not any(id(each) in mine for group in self.optimizer.param_groups for each in group["params"]):
            raise ValueError(f'optimizer has none of the parameters that train="{settings.train}" trains')
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def _adam(self, routing: set[int]) -> torch.optim.Optimizer:
        settings = self.settings
        parts = [[p for p in self.trained.values() if (id(p) in routing) == mine] for mine in (True, False)]
        groups = [
            {"params": part, "lr": lr} for part, lr in zip(parts, (settings.lr, settings.model_lr), strict=True) if part
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One step.

        Raises:
            FloatingPointError: the loss is no number; nothing was changed.
            ValueError: there is a budget, and the policy cannot be moved towards it.
        """
        settings, policy = self.settings, self.radial.policy
        policy.phase = "soft" if self.step < settings.soft_steps else "hard"
        policy.temperature = Schedule("linear", 1.0, settings.coldest)(self.step / max(1, settings.soft_steps - 1))
        torch.manual_seed((settings.seed * 1_000_003 + self.step) % 2**63)
        torch.clear_autocast_cache()  # around a whole run, it would keep the weights of the first step
        device = next(iter(self.trained.values())).device
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            aim = None if self.teacher is None else outputs(self.teacher, batch)
        with torch.enable_grad():
            if settings.layer_skip is None:
                out, exits = outputs(self.radial, batch), None
            else:
                out, exits = exit_terms(self.radial, batch, settings.layer_skip, self.step, settings.steps)
            terms = settings.objective.terms(out, aim, batch, self._walk(), self.step / settings.steps)
            if exits is not None:
                terms |= exits(terms["text"])
            cost, depth = self._cost()
            if self.budget is not None and cost is not None:
                terms["budget"] = self.budget.loss(cost, hard=policy.phase == "hard")
            loss = torch.stack([term.float() for term in terms.values()]).sum()
        record = {
            "step": self.step + 1.0, "loss": float(loss.detach()), "depth": depth, "temperature": policy.temperature,
        }  # fmt: skip
        record |= {name: float(term.detach()) for name, term in terms.items()}
        if not math.isfinite(record["loss"]):
            raise FloatingPointError(f"the loss is {record['loss']} at step {self.step + 1}; a smaller lr may help")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), _CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.rate(self.step)
        self.optimizer.step()
        if cost is not None:
            record["cost"] = float(cost.detach())
        if self.budget is not None:
            record |= {"target": self.budget.now, "price": self.budget.price}
            self.budget.update(record["cost"])
        self.step += 1
        self.history.records.append(record)
        return record

    def _walk(self) -> Any:
        assert self.radial.run is not None
        return self.radial.run.walk

    def _cost(self) -> tuple[Tensor | None, float]:
        """What a token of this pass costs when routes are hard, as a share, and how many units it runs."""
        expected = self._walk().expected
        if self.budget is not None and (expected is None or not expected.requires_grad):
            raise ValueError(
                f"budget={self.settings.budget} is for policies that learn what to skip; what a "
                f"{type(self.radial.policy).__name__} skips is fixed, expected None"
            )
        if expected is None:
            return None, math.nan
        return self.costs.share(expected, self.radial.policy.asked(expected)), float(expected.detach().sum())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it, whole or not at all."""
        state = self.optimizer.state_dict()
        tensors, numbers = self._tensors(), {}
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    numbers[f"{index}.{name}"] = value
        record = self._record() | {
            "step": self.step, "history": self.history.records, "settled": self.history.settled,
            "groups": state["param_groups"], "numbers": numbers,
            "budget": None if self.budget is None else asdict(self.budget),
        }  # fmt: skip
        return saved.write(path, "run", record, tensors)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on where a file was written.

        Raises:
            saved.StateError: it is damaged, or of a run with another model or other settings; nothing was changed then.
        """
        record, tensors = saved.read(path, "run")
        saved.check_identity(path, record, self.radial)
        mine = self._record()
        for name in ("settings", "context", "optimizer"):
            if record[name] != mine[name]:
                raise saved.StateError(f"{path} is of a run with {name} {record[name]}, expected {mine[name]}")
        # Older runs do not say what their data was, and nobody has to.
        if record.get("data") is not None and self.source is not None and record["data"] != self.source:
            raise saved.StateError(f"{path} is of a run on the data {record['data']}, expected {self.source}")
        state: dict[int, dict[str, Any]] = {}
        for key in [key for key in tensors if key.startswith("optimizer.")]:
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensors.pop(key)
        for key, value in record["numbers"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        saved.assign(path, self._tensors(), tensors)
        self.optimizer.load_state_dict({"state": state, "param_groups": record["groups"]})
        self.step, self.history = int(record["step"]), History(record["history"], record["settled"])
        if self.budget is not None:
            self.budget = Budget(**record["budget"])

    def _tensors(self) -> dict[str, Tensor]:
        """What training changes, but for the optimizer."""
        buffers = {f"buffer.{name}": value for name, value in self.radial.policy.named_buffers()}
        return {f"parameter.{name}": each.data for name, each in self.trained.items()} | buffers

    def _record(self) -> dict[str, Any]:
        return {
            "identity": saved.identity(self.radial), "settings": asdict(self.settings), "context": self.costs.context,
            "optimizer": type(self.optimizer).__name__, "data": self.source,
        }  # fmt: skip
