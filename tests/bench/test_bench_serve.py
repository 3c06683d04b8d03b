"""The suite of servers runs, with every server that is here; what its clients count is what the server made."""

import pytest

from gossamer import bench
from gossamer.bench.serve.load import shape


def test_percentiles():
    assert shape([float(number) for number in range(1, 201)]) == {"mean": 100.5, "median": 100.5, "p99": 198.0}
    assert shape([]) == {"mean": 0.0, "median": 0.0, "p99": 0.0}


@pytest.mark.slow
def test_every_section_runs_and_makes_its_tables():
    result = bench.run("serve", bench.Settings(quick=True, reps=1, threads=1))
    for name, section in bench.sections("serve").items():
        rows = result["sections"][name]["rows"]
        for table in (section.table, *section.further.values()):
            assert rows and table.text(rows).count("\n") == len(rows) + 2
        for row in rows:
            assert all(tokens <= row["requests"] * row["new"] for tokens in row["tokens a round"].values())
            assert row["tokens a round"]["dense"] == row["tokens a round"]["sparse"] == row["requests"] * row["new"]
