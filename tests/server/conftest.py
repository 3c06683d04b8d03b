"""Makes the servers of these tests importable, and starts the one that most of them ask."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "serving")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    from served import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(folder):
    """A server that all may ask, of limits that no single test reaches."""
    from served import Served

    with Served(folder) as served:
        yield served
        assert served.pages_in_use() == 0
