"""`python -m cqs` is the command `cqs`."""

import sys

from cqs.cli import main

if __name__ == "__main__":
    sys.exit(main())
