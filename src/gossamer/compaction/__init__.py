"""Exact removal of dead channels: capture a model, label its channels, slice what is dead, prove nothing changed."""

from .capture import CaptureError
from .graph import ChannelGraph, ChannelGroup, Member

__all__ = ["CaptureError", "ChannelGraph", "ChannelGroup", "Member"]
