"""A run as two files: `report.json` for programs and `report.html`, one page without outside resources, for people.

May import the standard library only.
"""

from gossamer.report.write import write

__all__ = ["write"]
