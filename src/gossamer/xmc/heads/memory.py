"""What a classifier needs of memory, and how many labels fit into what is free."""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.measure.memory import require_memory


@dataclass(frozen=True)
class Layout:
    """Bytes of a label: `fan_in` connections, and its bias.

    >>> Layout(64, 2, 2, 0, 1, True).label  # bfloat16 and uint16, SGD
    260.0
    """

    fan_in: int
    index_bytes: int
    value_bytes: int
    states: int
    group: int
    bias: bool

    @property
    def label(self) -> float:
        connection = self.value_bytes + self.index_bytes / self.group + 4 * self.states
        return self.fan_in * connection + 4 * self.bias * (1 + self.states)


def require_room(layout: Layout, labels: int) -> None:
    """Refuse, with a number that would do, what is larger than the memory that is free (where that can be told)."""
    advice = "Take a smaller fan_in, dtype=torch.bfloat16, optimizer='sgd' or a larger group"
    require_memory(f"labels={labels:,} with fan_in={layout.fan_in}", labels, layout.label, advice)
