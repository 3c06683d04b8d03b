"""Is the graph that is being made meant for another process? Then it must hold torch's own operators."""

from __future__ import annotations

import torch


def leaves_process() -> bool:
    """True under torch.export, torch.jit.trace and make_fx: handles mean nothing where that graph goes."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    if torch.jit.is_tracing():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None
