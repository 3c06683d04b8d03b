"""Makes the small models importable by the tests of this folder, those of serving too."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "serving")]
