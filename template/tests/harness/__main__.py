"""Look after the harness: `python -m tests.harness doctor | status | psql | clean`."""

from __future__ import annotations

import io
import sys


def main() -> int:
    """Run the command. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:] == ["doctor"]:
        from . import doctor

        return doctor.main()
    from . import commands  # needs a driver of Postgres

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
