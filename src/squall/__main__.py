"""`python -m squall`: the command line."""

import sys

from squall.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
