"""The backend of a law, made to run what its name says; the modules of this folder made importable."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def backend(request):
    with request.param.chosen():
        yield request.param


@pytest.fixture(autouse=True)
def one_thread(anew):
    """A team that waits for a busy core makes small tests slow; the tests about threads ask for their own number."""
    torch.set_num_threads(1)
