"""The process of one card: `python -m gossamer.cli.tour.one NAME FOLDER [--quick]`.

Its standard output is lines for whoever started it: what is being done. Everything that libraries print goes to the
other stream. What was found is FOLDER/card.json, or {"error": why}.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from gossamer import files
from gossamer.cli.tour.card import card


def main(name: str, folder: Path, quick: bool) -> int:
    lines, sys.stdout = sys.stdout, sys.stderr

    def say(words: str) -> None:
        print(words, file=lines, flush=True)

    try:
        found = card(name).run(folder, say, quick).to_dict()
    except Exception as error:
        traceback.print_exc()
        files.write_json(folder / "card.json", {"error": " ".join(str(error).split()) or type(error).__name__})
        return 1
    files.write_json(folder / "card.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), "--quick" in sys.argv[3:]))
