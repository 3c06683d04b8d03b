"""Other spellings of what the compiler knows: attention in one call or by hand, writes that nobody else sees."""

from __future__ import annotations

from torch.fx import GraphModule

from gossamer.compile.modes import has_effect
from gossamer.compile.respelling.attention_by_hand import by_hand
from gossamer.compile.respelling.attention_in_one_call import in_one_call
from gossamer.compile.respelling.filled import concatenated
from gossamer.compile.respelling.in_place import out_of_place
from gossamer.compile.respelling.writer import copied


def respelled(gm: GraphModule) -> GraphModule:
    """A copy of a graph that computes the same in fewer kinds of operators; what is not recognised stays as it is."""
    copy = copied(gm)
    for rewrite in (concatenated, out_of_place, in_one_call, by_hand):
        rewrite(copy.graph)
    copy.graph.eliminate_dead_code(is_impure_node=has_effect)
    copy.recompile()
    return copy


__all__ = ["copied", "respelled"]
