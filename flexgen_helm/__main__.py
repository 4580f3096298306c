"""``python -m flexgen_helm``: the command line without its script."""

import sys

from flexgen_helm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
