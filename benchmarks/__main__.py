"""Run every benchmark and print its tables: ``python -m benchmarks [--json]``."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("startup", "plan", "store")


def main() -> None:
    """Each in a process of its own, so that none runs in the memory and threads of another."""
    for name in NAMES:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
