"""`python -m rlft` is the same as `rlft`."""

import sys

from rlft.cli import main

if __name__ == "__main__":
    sys.exit(main())
