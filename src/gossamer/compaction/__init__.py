"""Exact removal of dead channels: capture a model, label its channels, slice what is dead, prove nothing changed."""

from .capture import CaptureError
from .graph import ChannelGraph, ChannelGroup, Member
from .liveness import dead
from .rewrite import Kept, shrink_
from .structure import StructureError

__all__ = ["CaptureError", "ChannelGraph", "ChannelGroup", "Kept", "Member", "StructureError", "dead", "shrink_"]
