"""The trainers Sengi is compared with live in an environment of their own: ``python -m benchmarks.peers install``."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"
PINS = Path(__file__).with_name("peers.txt")
_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(PINS))


def install() -> None:
    """Make the environment, or bring it to the pinned versions."""
    if not PYTHON.exists():
        venv.create(FOLDER, with_pip=True)
    # torch first and alone: asked for by another package, pip would take another build than the one that is pinned
    subprocess.run([str(PYTHON), *_PIP, "torch"], check=True)
    subprocess.run([str(PYTHON), *_PIP, "--requirement", str(PINS)], check=True)


def python() -> str:
    """The peers' interpreter.

    Raises:
        SystemExit: it is not installed.
    """
    if not PYTHON.exists():
        raise SystemExit("the peers are not installed; run: python -m benchmarks.peers install (or make bench-peers)")
    return str(PYTHON)


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        raise SystemExit(__doc__)
    install()
    print(f"installed into {FOLDER}")
