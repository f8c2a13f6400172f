"""Print any values of an evaluation by method, with 95 % intervals, as docs/results.md has them.

    python benchmarks/evaluation_values.py RESULTS --values grid_pointing/own_share
    python benchmarks/evaluation_values.py RESULTS --against Grad-CAM \
        --values "insertion/accuracy_auc,insertion(canvas=mean)/accuracy_auc"

`afmi report` tells of each metric's headline; this of every row that is kept. With ``--against``
each cell has the mean difference to that method, picture by picture, too. In bold: differences
whose interval excludes zero. Without ``--values`` the names are listed.
"""

from __future__ import annotations

import argparse

import numpy as np

from afmi.evaluation import Results
from afmi.report import statistics
from afmi.report.statistics import Estimate


def written(estimate: Estimate, digits: int, *, sign: bool = False) -> str:
    """Return an average with its interval."""
    plus = "+" if sign else ""
    value, low, high = (
        f"{number:{plus}.{digits}f}".replace("-", "−")
        for number in (estimate.value, estimate.low, estimate.high)
    )
    clear = sign and (estimate.low > 0 or estimate.high < 0)
    return f"{f'**{value}**' if clear else value} ({low} to {high})"


def cell(own: np.ndarray | None, other: np.ndarray | None, images: int, digits: int) -> str:
    """Return what a table shows of a method's numbers (n,), beside another's where there are."""
    if own is None or not np.isfinite(own).any():
        return "–"
    (average,) = statistics.means(own[:, None])
    if other is None:
        text = written(average, digits)
    else:
        text = f"{average.value:.{digits}f}"
        if other is not own:
            (pair,) = statistics.paired([(own, other)])
            text += f"; {written(pair.difference, digits, sign=True)}"
    return text if average.count == images else f"{text}, {average.count} pictures"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].replace("%", "%%"))
    parser.add_argument("results", help="folder that `afmi evaluate` wrote")
    parser.add_argument("--values", help="names, joined by commas; default: list them")
    parser.add_argument("--against", help="label of the method to compare with")
    parser.add_argument("--digits", type=int, default=3)
    given = parser.parse_args()
    results = Results.open(given.results)
    values = {method: results.read(method).values for method in results.methods}
    if given.values is None:
        print("\n".join(sorted({name for found in values.values() for name in found})))
        return
    names = given.values.split(",")
    print(f"| method | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for method, found in values.items():
        cells = []
        for name in names:
            other = values[given.against].get(name) if given.against else None
            own = other if method == given.against else found.get(name)
            cells.append(cell(own, other, len(results.images), given.digits))
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
