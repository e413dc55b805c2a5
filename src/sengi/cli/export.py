"""``sengi export``: a model for others, out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sengi.cli.console import err, out


def export(source: Path, *, output: Path, merge: bool = False, dtype: Literal["auto", "float32"] | None = None) -> int:
    """Copy a checkpoint without its training state, or make one model of an adapter and its base.

    Args:
        source: A run folder (its last checkpoint is taken), a checkpoint, or any LoRA adapter.
        output: Folder to make; it must not exist.
        merge: Add the adapter to the weights of its base: a plain model, for everything that knows no adapters.
        dtype: With --merge: auto saves the weights in the type of the base, float32 loses nothing.

    Returns:
        The exit status.
    """
    from sengi.train.export_folder import export_folder

    with err.status("exporting"):
        found = export_folder(source, output, merge=merge, dtype=dtype)
    out.print(f"exported {found} to {output}", markup=False, soft_wrap=True)
    return 0
