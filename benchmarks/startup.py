"""How long the command line takes to answer.

    python -m benchmarks.startup [--json]

Every measurement is a process of its own, started from nothing but the file cache of the system.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.table import Table, parser, show

COMMANDS = {
    "python alone": ["-c", "pass"],
    "sengi --version": ["-m", "sengi", "--version"],
    "sengi --help": ["-m", "sengi", "--help"],
    "sengi train --help": ["-m", "sengi", "train", "--help"],
}


def startup(repeats: int) -> Table:
    """Wall time of a whole process."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats + 1):  # in turns, so that a busy moment of the machine hits all
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    rows = [
        (name, statistics.median(measured[1:]), min(measured[1:]), max(measured[1:]))
        for name, measured in times.items()
    ]
    return Table(
        "Start of the command line, wall time of a process",
        ("command", "median s", "least s", "most s"),
        rows,
        [f"{repeats} processes each after one to fill the file cache; target: sengi --help below 0.5 s"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.set_defaults(repeats=11)
    given = options.parse_args(arguments)
    show([startup(given.repeats)], given.json)


if __name__ == "__main__":
    main()
