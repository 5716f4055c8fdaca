"""`python -m instantstyle`: the command line."""

import sys

from instantstyle.commands.cli import main


if __name__ == "__main__":
    sys.exit(main())
