"""`python -m dreamgen` and the `dreamgen` command."""

import sys

from dreamgen.cli.main import main


def run() -> None:
    """Run the command line and exit with its status."""
    sys.exit(main())


if __name__ == "__main__":
    run()
