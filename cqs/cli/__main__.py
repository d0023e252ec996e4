"""`python -m cqs.cli`."""

import sys

from cqs.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
