"""Our methods beside their authors' programs: `python -m benchmarks.authors`."""
