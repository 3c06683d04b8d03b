"""Rewrite the part of a graph that works token by token for the tokens that are there, without padding.

    values [B, S, ...]                     packed [T, ...], T tokens of B texts, one text after the other
    attention of a text to itself          attention within each text (`gossamer.ops.varlen_attention`)

A value that attention has not touched yet is packed as early as it can be: ids before their embedding, not after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from gossamer.compile.conditions import Condition
from gossamer.compile.labels import Axes, Label, Size
from gossamer.compile.operators import Call, CannotPack, call_of, is_tensor, operator_of

Attend = Callable[..., Any]
"""What the packed graph calls for attention: (q, k, v, tokens, offsets, kind, mask, scale, dropout); to other texts
(q, k, v, mask, tokens, length, scale, dropout)."""


@dataclass(frozen=True)
class Entry:
    """A value that enters the packed graph: which dimensions are its batch and sequence, None for one it lacks.

    `merged` is the dimension that is both, where a view has merged them.
    """

    node: Node
    batch: int | None
    sequence: int | None
    merged: int | None = None
    squeeze: tuple[int, ...] = ()
    """Dimensions of size 1 that stand where the others have tokens."""


@dataclass
class Packing:
    """The packed graph of one pair of axes, batch and sequence, as it grows.

    Attributes:
        env: the node of the packed graph for a node of the whole one.
        entries: its inputs, in order: values to be gathered, then `inputs` that go in as they are.
        kinds: a mask of the whole graph: the input that says at run time what it amounts to.
        descendants: nodes that depend on attention.
        inside: nodes that are something else in the dense graph.
        elsewhere: nodes that run under another mode, and must.
        goes_on: whether code that no graph shows reads what the graph returns.
    """

    axes: Axes
    batch: int
    sequence: int
    descendants: set[Node]
    elsewhere: set[Node]
    attend: Attend
    attend_across: Attend
    goes_on: bool = False
    graph: Graph = field(default_factory=Graph)
    env: dict[Node, Any] = field(default_factory=dict)
    entries: dict[Entry, Node] = field(default_factory=dict)
    inputs: dict[Node, Node] = field(default_factory=dict)
    kinds: dict[Node, Node] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    placed: list[tuple[str, Any]] = field(default_factory=list)
    inside: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tokens = self._input("tokens", None)
        self.offsets = self._input("offsets", None)

    def _input(self, kind: str, what: Any) -> Node:
        """An input of the packed graph; all of them come first."""
        self.placed.append((kind, what))
        last = next((node for node in reversed(self.graph.nodes) if node.op == "placeholder"), None)
        if last is None:
            return self.graph.placeholder(kind)
        with self.graph.inserting_after(last):
            return self.graph.placeholder(f"{kind}_{len(self.placed)}")

    # -- labels

    def place(self, label: Label) -> tuple[int | None, int | None, int | None]:
        """Which dimensions are the batch, the sequence, and both merged; CannotPack where that has no plain answer."""
        batch, sequence, merged = (
            [at for at, dim in enumerate(label) if dim == wanted]
            for wanted in ((self.batch,), (self.sequence,), (self.batch, self.sequence))
        )
        mixed = [
            d for d in label if len(d) > 1 and d != (self.batch, self.sequence) and {self.batch, self.sequence} & set(d)
        ]
        if mixed or max(len(batch), len(sequence), len(merged)) > 1 or (merged and (batch or sequence)):
            raise CannotPack("tokens are merged with another dimension, or there twice")
        return tuple(each[0] if each else None for each in (batch, sequence, merged))  # type: ignore[return-value]

    def has_tokens(self, label: Label) -> bool:
        try:
            batch, sequence, merged = self.place(label)
        except CannotPack:
            return False
        return merged is not None or (batch is not None and sequence is not None)

    def touches(self, label: Label) -> bool:
        """Whether a value has a dimension of the batch or the sequence at all."""
        return any(axis in (self.batch, self.sequence) for dim in label for axis in dim)

    def rest(self, label: Label) -> list[int]:
        batch, sequence, merged = self.place(label)
        if merged is None and (batch is None or sequence is None):
            raise CannotPack("a value without tokens among values that have them")
        return [at for at in range(len(label)) if at not in (batch, sequence, merged)]

    def around(self, label: Label) -> tuple[Size, Size, Size, Size]:
        """See `Packer`."""
        batch, sequence, merged = self.place(label)
        if merged is not None:
            batch = sequence = merged
        if batch is None or sequence is None:
            raise CannotPack("a value without tokens among values that have them")
        first, last = min(batch, sequence), max(batch, sequence)

        def size(of: Label) -> Size:
            product: Size = 1
            for dim in of:
                for axis in dim:
                    product = product * self.axes.size(axis)
            return product

        return int(batch > sequence), size(label[:first]), size(label[first + 1 : last]), size(label[last + 1 :])

    # -- values

    def packed(self, node: Node) -> Any:
        if node in self.env:
            return self.env[node]
        if node in self.descendants:
            raise CannotPack(f"{node.name} is not known token by token")
        if not is_tensor(node):
            made = self._earlier(node)
            if made is None:
                raise CannotPack(f"{node.name} is not known token by token")
            return made
        label = self.axes.of(node)
        if not self.has_tokens(label):
            raise CannotPack(f"{node.name} has no dimension of tokens")
        made = self._earlier(node)
        if made is None:
            batch, sequence, merged = self.place(label)
            made = self.entry(Entry(node, batch, sequence, merged))
        self.env[node] = made
        return made

    def _earlier(self, node: Node) -> Any:
        """A value from before attention, packed by packing what it is made of; None where it is gathered itself."""
        call = call_of(node)
        known = operator_of(call) if call is not None else None
        if call is None or known is None or node in self.elsewhere or _is_random(call):
            return None
        before = dict(self.env), dict(self.entries), dict(self.inputs), list(self.placed), list(self.conditions)
        nodes = set(self.graph.nodes)
        try:
            return known.pack(call, self)
        except (CannotPack, AssertionError, IndexError, TypeError, ValueError):
            self.env, self.entries, self.inputs, self.placed, self.conditions = before
            for extra in [node for node in reversed(self.graph.nodes) if node not in nodes]:
                self.graph.erase_node(extra)
            return None

    def operand(self, node: Node, beside: Label) -> Node:
        """See `Packer`. What has a batch or a sequence alone is gathered too."""
        label = self.axes.of(node)
        self._check_beside(label, beside)
        if node in self.descendants or self.has_tokens(label):
            made, left = self.packed(node), len(self.rest(label))
        else:
            shift = len(beside) - len(label)
            singles = tuple(
                at - shift for at in self.place(beside) if at is not None and at >= shift and not label[at - shift]
            )
            batch, sequence, _ = self.place(label)
            if batch is None and sequence is None:
                plain: Node = self.plain(node)
                index = tuple(0 if at in singles else slice(None) for at in range(len(label)))
                return self.call("__getitem__", plain, index) if singles else plain
            made = self.entry(Entry(node, batch, sequence, None, singles))
            left = len(label) - (batch is not None) - (sequence is not None) - len(singles)
        # Broadcasting aligns from the right, but tokens are on the left.
        missing = len(self.rest(beside)) - left
        return self.call("__getitem__", made, (slice(None), *(None,) * missing)) if missing else made

    def _check_beside(self, label: Label, beside: Label) -> None:
        """Each dimension must be one of the result's at its place, or of size 1; or neither has to do with tokens."""
        for at, dim in enumerate(label, len(beside) - len(label)):
            if at < 0 or (dim and dim != beside[at] and self.touches((dim, beside[at]))):
                raise CannotPack("operands whose dimensions are not known to be the same")

    def plain(self, node: Any) -> Any:
        if isinstance(node, (list, tuple)):
            return type(node)(self.plain(each) for each in node)
        if not isinstance(node, Node):
            return node
        if node in self.descendants:
            raise CannotPack(f"{node.name} is not known before attention")
        if is_tensor(node) and self.touches(self.axes.of(node)):
            raise CannotPack(f"{node.name} has a dimension of the batch or the sequence")
        if node not in self.inputs:
            self.inputs[node] = self._input("plain", node)
        return self.inputs[node]

    def merged(self, node: Node) -> Node:
        return self.entry(Entry(node, None, None, 0))

    def like(self, node: Node) -> Node:
        return self.env[node] if node in self.env else self.plain(node)

    def entry(self, entry: Entry) -> Node:
        if entry not in self.entries:
            self.entries[entry] = self._input("entry", entry)
        return self.entries[entry]

    # -- nodes

    def emit(self, like: Node, *args: Any, **kwargs: Any) -> Node:
        args, kwargs = map_arg((args, kwargs), self._here)
        new = self.graph.create_node(like.op, like.target, tuple(args), kwargs)
        new.meta = {key: value for key, value in like.meta.items() if key in ("stack_trace", "nn_module_stack")}
        return new

    def _here(self, node: Node) -> Node:
        """An argument in the packed graph: a number, such as how long texts are, is computed there too."""
        if node.graph is self.graph:
            return node
        if node in self.env:
            made: Node = self.env[node]
            return made
        if is_tensor(node) or node in self.descendants:
            raise CannotPack(f"{node.name} is not known token by token")
        if node.op == "call_function" and not any(map(is_tensor, node.all_input_nodes)):
            return self.emit(node, *node.args, **node.kwargs)
        number: Node = self.plain(node)
        return number

    def call(self, method: str, *args: Any) -> Node:
        return self.graph.call_method(method, args)

    def attention(self, node: Node, q: Node, k: Node, v: Node, mask: Node, scale: Any, dropout: Any) -> Node:
        if mask not in self.kinds:
            self.kinds[mask] = self._input("kind", mask)
            self.inputs[mask] = self._input("mask", mask)
        _check_numbers(scale, dropout)
        return self.graph.call_function(
            self.attend, (q, k, v, self.tokens, self.offsets, self.kinds[mask], self.inputs[mask], scale, dropout)
        )

    def across(self, q: Node, k: Node, v: Node, mask: Node | None, scale: Any, dropout: Any) -> Node:
        whole = [None if each is None else self._whole(each) for each in (k, v, mask)]
        _check_numbers(scale, dropout)
        length: Any = self.axes.size(self.sequence)
        if not isinstance(length, int):
            length = self.call("size", next(self.inputs[each] for each in self.kinds), -1)
        return self.graph.call_function(self.attend_across, (q, *whole, self.tokens, length, scale, dropout))

    def _whole(self, node: Node) -> Node:
        """A value that goes in as it is, whatever dimensions it has."""
        if node in self.descendants:
            raise CannotPack(f"{node.name} depends on attention")
        if node not in self.inputs:
            self.inputs[node] = self._input("whole", node)
        return self.inputs[node]

    def keep_inside(self, node: Node) -> None:
        self.inside.add(node)

    def condition(self, condition: Condition) -> None:
        if condition not in self.conditions:
            self.conditions.append(condition)


def _is_random(call: Call) -> bool:
    """What draws numbers runs once: where it is drawn for the packed graph, nobody else may read it."""
    return call.name in ("dropout", "rand_like", "randn_like", "bernoulli") and bool(call.get(2, "training", True))


def _check_numbers(*numbers: Any) -> None:
    """Raises CannotPack where torch.compile(dynamic=True) has made a variable of a number of the model."""
    if any(isinstance(each, Node) for each in numbers):
        raise CannotPack("attention whose scale is no constant, as with torch.compile(dynamic=True)")
