"""`python -m harness.child …` is `harness …` that ends with the process that started it."""

import sys

from harness.cli import main
from harness.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
