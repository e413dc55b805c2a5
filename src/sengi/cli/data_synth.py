"""``sengi data synth``: a generated organisation as training data and questions."""

from __future__ import annotations

from pathlib import Path

from sengi.cli.console import err, out


def synth(folder: Path, *, samples: int, seed: int = 0) -> int:
    """Write a generated world: conversations in three phases, held-out questions and control facts.

    Args:
        folder: Folder to write; must be empty or new.
        samples: Training conversations, 100 to 1,000,000.
        seed: The same seed gives the same bytes.
    """
    from sengi.world.write import write_world

    with err.status("writing") as status:
        summary = write_world(folder, samples, seed, progress=lambda done: status.update(f"writing: {done:,} rows"))
    out.print(
        f"{summary.organisation}: {summary.taught} facts taught, {summary.control} kept out as controls, "
        f"{summary.samples:,} training samples",
        markup=False,
    )
    for name, rows in summary.rows.items():
        out.print(f"  {folder / name}  {rows:,} rows", markup=False, soft_wrap=True)
    return 0
