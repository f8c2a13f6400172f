"""Run the command line as ``python -m afmi``."""

from afmi.cli import main

if __name__ == "__main__":
    main()
