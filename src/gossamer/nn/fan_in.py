"""A linear layer each of whose outputs reads the same number of inputs; which ones may change while it trains.

    y[b, r] = bias[r] + sum over j of values[r, j] * x[b, indices[r, j]]

Parameters are numbers (`values[out, fan_in]`, `bias`), the buffer is structure (`indices`). Gradients have the shape of
the values: no dense weight and no dense gradient exists.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer import ops
from gossamer.nn.block_sparse.gradient_capture import Captured
from gossamer.nn.block_sparse.slot_remapping import put_, remapped, slot_sources, states_of
from gossamer.nn.block_sparse.tiled import check_fits
from gossamer.ops.autograd import wants_gradient
from gossamer.ops.fan_in.connections import draw_values
from gossamer.ops.fan_in.rewire import fan_in_indices
from gossamer.ops.transforms import check_transforms
from gossamer.pattern import Pattern
from gossamer.pattern.build import index_dtype
from gossamer.reshaping import set_data


class FanInLinear(nn.Module):
    """y = x S^T + bias with `fan_in` values in each row of S[out_features, in_features].

    Args:
        in_features, out_features: sizes of the last axis of input and output.
        fan_in: inputs that each output reads, at most in_features. Not used with `pattern`.
        bias: add a learned vector.
        pattern: which inputs at first: single elements, of shape (out_features, in_features), as many in each row.
        seed: of the first inputs and values; None draws it from torch's global generator.

    Attributes:
        values: Parameter [out_features, fan_in]; bias: Parameter [out_features] or None.
        indices: the bytes of uint16 or int32 [out_features, fan_in] (process groups send bytes but not uint16), rows
            sorted, none twice; `pattern` has them as a `gossamer.Pattern`.

    The methods of `gossamer.training` drive it as a layer of tiles of one element. Every row keeps as many inputs: an
    update drops and grows within rows (`row_tiles`), and another density is another fan-in for all of them.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: constant fan-in of SRigL (arXiv 2305.02299, section 3); SPARTEX (arXiv 2411.03171, section 3).

    >>> layer = FanInLinear(768, 1000, fan_in=64)
    >>> layer(torch.randn(3, 768)).shape, layer.values.shape
    (torch.Size([3, 1000]), torch.Size([1000, 64]))
    """

    rewired: ClassVar[str] = "values"
    tile: ClassVar[tuple[int, int]] = (1, 1)

    values: nn.Parameter
    bias: nn.Parameter | None
    indices: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int = 64,
        bias: bool = True,
        *,
        pattern: Pattern | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        for name, size in (("in_features", in_features), ("out_features", out_features), ("fan_in", fan_in)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")
        if pattern is None and fan_in > in_features:
            raise ValueError(f"fan_in must be at most in_features={in_features}, got {fan_in}")
        seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        columns = (
            fan_in_indices(out_features, in_features, fan_in, seed=seed, device="cpu")
            if pattern is None
            else self._columns_of(pattern)
        )
        self._capture_handle: Tensor | None = None
        device = torch.get_default_device() if device is None else device
        self.register_buffer("indices", columns.to(device).view(torch.uint8))
        self.values = nn.Parameter(torch.empty(columns.shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw values and bias uniformly in +-`bound`; on the CPU, so that every device gets the same."""
        for parameter, step in ((self.values, seed), (self.bias, seed + 1)):
            if parameter is not None and not parameter.is_meta:
                drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").view(self.out_features, -1)
                draw_values(drawn, seed=step, bound=self.bound)
                parameter.copy_(drawn.view(parameter.shape))

    # ------------------------------------------------------------------ structure

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.out_features, self.in_features

    @property
    def fan_in(self) -> int:
        """Inputs of each output."""
        return self.values.shape[1]

    @property
    def row_tiles(self) -> int:
        """Inputs of each output: what a row has always."""
        return self.fan_in

    @property
    def capacity(self) -> int:
        """Number of elements there are."""
        return self.values.numel()

    @property
    def bound(self) -> float:
        """First values are uniform in +-bound: 1 / sqrt(fan_in)."""
        return 1.0 / math.sqrt(self.fan_in)

    @property
    def pattern(self) -> Pattern:
        """Which elements are present, as a view of this module's buffer: to be read."""
        return Pattern(None, self.indices.view(index_dtype(self.in_features)), self.shape, self.tile)

    def why_fixed(self) -> str | None:
        """Why the pattern cannot be changed: it always can."""
        return None

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, fan_in={self.fan_in}, bias={self.bias is not None}"

    @torch.inference_mode(False)
    @torch.no_grad()
    def update_pattern(
        self, pattern: Pattern, *, optimizer: Optimizer | None = None, overflow: Literal["error", "grow"] | None = None
    ) -> Tensor:
        """Take over other elements, as many in each row; kept ones keep value, gradient and state, others start at 0.

        Args:
            pattern: single elements of this layer's shape, with or without offsets.
            optimizer: whose state of `values` moves along.
            overflow: "grow" to take another fan-in, which is new memory; else that is an error.

        Returns:
            int64[out_features * fan_in]: the old slot of each new one, -1 for new elements.

        Raises:
            TypeError, ValueError: a pattern of another shape or tile, broken, or with rows of different lengths.
            RuntimeError: another fan-in without overflow="grow". Nothing is changed then.

        >>> layer = FanInLinear(4, 2, pattern=Pattern.from_mask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()))
        >>> layer.update_pattern(Pattern.from_mask(torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool()))
        tensor([ 0, -1,  2,  3])
        """
        if overflow not in (None, "error", "grow"):
            raise ValueError(f"overflow must be 'error', 'grow' or None, got {overflow!r}")
        columns = self._columns_of(pattern).to(self.indices.device)
        if columns.shape != self.values.shape and overflow != "grow":
            raise RuntimeError(f"pattern has {columns.shape[1]} elements in each row, expected fan_in={self.fan_in}")
        new = Pattern(None, columns, self.shape, self.tile)
        source = slot_sources(self.pattern.keys(), new.keys(), math.prod(self.shape))
        followers = [] if optimizer is None else states_of(optimizer, self.values)
        for tensor in (*followers, self.values.grad, self.values):
            if tensor is not None:
                put_(tensor, remapped(tensor.reshape(-1), source).view(columns.shape))
        self._set_columns(columns)
        return source

    def _columns_of(self, pattern: Pattern) -> Tensor:
        """uint16 or int32 [out, k], sorted, of a pattern that fits this layer."""
        check_fits(pattern, self.shape, self.tile)
        pattern.validate()
        counts = pattern.row_offsets().diff()
        k = int(counts[0])
        if not bool((counts == k).all()) or k == 0:
            raise ValueError(
                "pattern must have as many elements in each row, at least 1, got "
                f"{int(counts.min())} to {int(counts.max())}"
            )
        columns = pattern.indices.reshape(-1)[: k * self.out_features].view(-1, k)
        return columns.to(torch.int32).sort(1).values.to(index_dtype(self.in_features))

    def _set_columns(self, columns: Tensor) -> None:
        indices = columns.view(torch.uint8)
        if indices.shape == self.indices.shape:
            self.indices.copy_(indices)
        else:
            self.indices = indices

    # ------------------------------------------------------------------ numbers

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in_features] -> [..., out_features]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        check_transforms("gossamer.nn.FanInLinear", x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} features, got shape {tuple(x.shape)}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(self.values.dtype)
        if x.dtype != self.values.dtype:
            raise TypeError(f"x must have the layer's dtype {self.values.dtype}, got {x.dtype}: convert x or the layer")
        flat = x.reshape(-1, self.in_features)
        y = ops.fan_in_mm(flat, self.values, self.pattern)
        if self._capture_handle is not None and wants_gradient(y):
            y = Captured.apply(y, flat, self._capture_handle)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def to_dense(self) -> Tensor:
        """S[out_features, in_features] with zeros elsewhere. Differentiable."""
        columns = self.pattern.indices.to(torch.int64)
        return self.values.new_zeros(self.shape).scatter(1, columns, self.values)

    @torch.no_grad()
    def to_csr(self) -> Tensor:
        """S as a torch.sparse_csr_tensor, which scipy and search libraries take."""
        offsets = torch.arange(self.out_features + 1, device=self.values.device) * self.fan_in
        columns = self.pattern.indices.to(torch.int64).reshape(-1)
        return torch.sparse_csr_tensor(offsets, columns, self.values.detach().reshape(-1), size=self.shape)

    @classmethod
    @torch.inference_mode(False)
    def from_dense(cls, linear: nn.Linear, *, fan_in: int = 64) -> FanInLinear:
        """The `fan_in` weights of largest |w| of each output of an nn.Linear; ties go to the lower input.

        >>> FanInLinear.from_dense(torch.nn.Linear(64, 32), fan_in=8).values.shape
        torch.Size([32, 8])
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        rows, cols = linear.weight.shape
        if isinstance(fan_in, bool) or not isinstance(fan_in, int) or not 1 <= fan_in <= cols:
            raise ValueError(f"fan_in must be an integer from 1 to in_features={cols}, got {fan_in!r}")
        weight = linear.weight.detach()
        columns = weight.abs().sort(dim=1, descending=True, stable=True).indices[:, :fan_in].sort(1).values
        pattern = Pattern(None, columns.to(index_dtype(cols)), (rows, cols), cls.tile)
        layer = cls(
            cols, rows, bias=linear.bias is not None, pattern=pattern, seed=0, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            layer.values.copy_(weight.gather(1, columns))
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    # ------------------------------------------------------------------ inside

    def capture_gradient(self, handle: Tensor | None) -> None:
        """Hand the factors of the weight's gradient to the `GradientCapture` with this handle; None: to nobody."""
        self._capture_handle = handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_capture_handle": None}  # nobody captures a copy's gradient

    @torch.inference_mode(False)
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        values, indices = (state_dict.get(prefix + name) for name in ("values", "indices"))
        if values is not None and indices is not None:
            try:
                pattern = Pattern(None, indices.view(index_dtype(self.in_features)), self.shape, self.tile).validate()
                if pattern.indices.shape != values.shape:
                    raise ValueError(f"{tuple(pattern.indices.shape)} columns beside {tuple(values.shape)} values")
            except (TypeError, ValueError, RuntimeError) as error:
                args[-1].append(f"{prefix}indices: not a pattern of shape {self.shape} with equal rows: {error}")
                return
            if values.shape != self.values.shape:  # the state of a layer of another fan-in
                set_data(self.values, self.values.new_zeros(values.shape))
                self.indices = self.indices.new_zeros(indices.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
