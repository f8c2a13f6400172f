"""Run the command line, as ``afmi`` or ``python -m afmi``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit; Ctrl-C while it is being loaded exits with 130 as well."""
    try:
        from afmi.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("afmi: interrupted\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
