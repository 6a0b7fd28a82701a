"""Where `make run` begins: `python tests/harness/development run …`.

By its path, because `python -m tests.harness…` imports `tests`, which points the service at the
tests' servers.
"""

import runpy
import sys
from pathlib import Path

if __package__:
    sys.exit("Run it by its path: python tests/harness/development")

# Here, the harness is a package of its own.
sys.path[0] = str(Path(__file__).resolve().parents[2])
runpy.run_module("harness.development.command", run_name="__main__")
