"""`python -m mvjax` is the `mvjax` command."""

import sys

from mvjax import cli

if __name__ == "__main__":
    sys.exit(cli.main())
