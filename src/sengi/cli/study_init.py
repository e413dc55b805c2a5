"""``sengi study init``: a question of the paper, made into a study file for the user's recipe and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sengi.cli.console import counting, err, out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sengi.presets.scale import ScaledSize


def init(
    preset: str | None = None,
    recipe: Path = Path("recipe.yaml"),
    *,
    scale: bool = False,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> int:
    """Print a study of one of the paper's questions: sengi study init batch-size recipe.yaml --scale > study.yaml.

    Without a name it lists the questions.

    Args:
        preset: Name of a study preset.
        recipe: Recipe that all runs have in common.
        scale: Cut the paper's sizes to the data, so that an epoch has as many steps as in the paper.
        set_: key=value on top of the recipe; may be given several times.
    """
    from sengi.study.preset_file import preset_file
    from sengi.study.study_presets import check_preset

    if preset is None:
        print_questions()
        return 0
    check_preset(preset)
    with counting() as observer:
        made = preset_file(preset, recipe, set_ or (), scale, observer)
    if scale:
        print_sizes(made.sizes, made.kept)
    out.file.write(made.text)
    return 0


def print_questions() -> None:
    """The study presets with their questions and the paper's answers."""
    from rich.table import Table

    from sengi.study.study_presets import PRESETS

    table = Table(show_lines=True)
    for column in ("preset", "question", "the paper's answer", "source", "confidence"):
        table.add_column(column, overflow="fold")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.question, preset.answer, preset.source, preset.confidence)
    out.print(table)


def print_sizes(sizes: Sequence[ScaledSize], kept: Sequence[str]) -> None:
    """What scaling did, on stderr: the output of the command goes into a file."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from sengi.presets.scale import PAPER_SAMPLES

    samples = sizes[0].samples if sizes else 0
    title = f"the paper's {PAPER_SAMPLES:,} samples an epoch -> {samples:,} here" if sizes else None
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("size")
    for column in ("paper", "here", "an epoch, paper", "an epoch, here"):
        table.add_column(column, justify="right")
    for size in sizes:
        paper, here = size.times
        table.add_row(size.key, f"{size.paper:,}", f"{size.here:,}", f"{paper:,.1f}", f"{here:,.1f}")
    if sizes:
        err.print(table)
    for sentence in [*(f"{size.key} {size.here}: {size.note}" for size in sizes if size.note), *kept]:
        err.print(f"note: {sentence}", style="yellow", soft_wrap=True, markup=False)
