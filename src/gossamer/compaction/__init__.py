"""Exact removal of dead channels: capture a model, label its channels, slice what is dead, prove nothing changed.

May import `gossamer.measure` from below; torch and numpy otherwise, safetensors only when saving or loading.
"""

from .captured import CaptureError
from .compact import compact
from .equality import InexactError
from .graph import ChannelGraph, ChannelGroup, Member
from .liveness import dead
from .result import Compact
from .rewrite import Kept, shrink_
from .store import StoreError, load_compact
from .structure import StructureError
from .verdict import CompactWarning
from .zero import zero_channels_

__all__ = [
    "CaptureError",
    "ChannelGraph",
    "ChannelGroup",
    "Compact",
    "CompactWarning",
    "InexactError",
    "Kept",
    "Member",
    "StoreError",
    "StructureError",
    "compact",
    "dead",
    "load_compact",
    "shrink_",
    "zero_channels_",
]
