"""Tensors and other things, whole, from one process to another."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import torch

_LENGTH = 8  # bytes before each message


def send(pipe: BinaryIO, content: Any) -> None:
    message = io.BytesIO()
    torch.save(content, message)
    pipe.write(message.tell().to_bytes(_LENGTH, "little") + message.getvalue())
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next message. EOFError: the other process is gone."""
    length = pipe.read(_LENGTH)
    if len(length) < _LENGTH:
        raise EOFError("the other process has ended")
    return torch.load(io.BytesIO(pipe.read(int.from_bytes(length, "little"))), weights_only=False)
