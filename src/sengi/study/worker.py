"""What a study starts for a run: a process that dies with the study and then becomes the training.

    python -m sengi.study.worker PARENT PROGRAM ARGUMENT...

The request to the kernel outlives ``execv``. So a killed study leaves no training behind that nobody watches, and a
training that is killed continues bit for bit (docs/crash-safety.md).
"""

from __future__ import annotations

import os
import sys

from sengi.train.parent import die_with


def main() -> None:
    """Tie this process to its parent and become the program."""
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
