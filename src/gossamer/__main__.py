"""`python -m gossamer COMMAND`: the same as `gossamer COMMAND`."""

import sys

from gossamer.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
