"""`python -m genfast` is the `genfast` command of this interpreter."""

import sys

from genfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
