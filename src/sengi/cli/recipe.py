"""``sengi recipe init | show | schema``: recipes to start from, to check and to understand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sengi.cli.console import counting, out
from sengi.errors import InputError

HEAD = """\
# A recipe says what to train; everything left out has a default with a reason ('sengi recipe schema').
"""
BODY = """\
effective_batch_size: 64           # samples a step; arXiv 2412.13337 uses 3,840-7,680 on 100,000s of samples
learning_rate: 2e-5
num_train_epochs: 3
# eval_data: heldout.jsonl         # held-out conversations: loss before and after
# eval_questions: questions.jsonl  # question, choices, answer: scored before and after
# eval_tasks: [arc_easy, mmlu]     # benchmarks: scored before, at every eval_samples, and after
"""


def init(
    preset: str | None = None,
    *,
    model: str = "smollm2-135m",
    data: str = "train.jsonl",
    scale: bool = False,
) -> int:
    """Print a commented recipe: sengi recipe init > recipe.yaml.

    Args:
        preset: Write out the values of this preset, each with its evidence ('sengi recipe show' lists presets).
        model: Local folder, hub id, GGUF file, or smollm2-135m.
        data: Training data: file, folder or hub dataset.
        scale: Cut the preset's sizes to the data, so that an epoch has as many steps as in the paper.
    """
    from sengi.recipe_sources import dump_yaml

    if scale and preset is None:
        raise InputError("--scale cuts the sizes of a preset; name one, as in 'sengi recipe init lab --scale'")
    body = BODY if preset is None else _preset_body(preset, model, data, scale)
    places = {"model_name_or_path": model, "data": [{"path": data}], "output_dir": "runs/first"}
    notes = {
        "model_name_or_path": "local folder, hub id, GGUF file, or smollm2-135m",
        "- path": "file, folder or hub dataset",
        "output_dir": "one folder a run; the same command continues it",
    }
    lines = [
        f"{line:34} # {notes[key]}" if (key := line.strip().partition(":")[0]) in notes else line
        for line in dump_yaml(places).splitlines()
    ]
    out.file.write(HEAD + "\n".join(lines) + "\n\n" + body)
    return 0


def _preset_body(preset: str, model: str, data: str, scale: bool) -> str:
    """The values of a preset as lines of a recipe, its sizes cut to the data where that is asked for."""
    from sengi.cli.study_init import print_sizes
    from sengi.presets.scale import SIZES, scaled
    from sengi.recipe import Recipe
    from sengi.recipe_sources import preset_text, read_preset, resolve_recipe
    from sengi.train.data_size import epoch_samples

    text = preset_text(preset)
    if not scale:
        return text
    values = {"model_name_or_path": model, "data": [data], "output_dir": "runs/first"}
    with counting() as observer:
        samples = epoch_samples(resolve_recipe(values=values).recipe, observer)
    own = read_preset(preset)
    sizes = [scaled(key, own.get(key, Recipe.model_fields[key].default), samples) for key in SIZES]
    print_sizes(sizes, ())
    for size in sizes:
        line = f"{size.key}: {size.here}"
        if size.key in own:
            text = re.sub(rf"(?m)^{size.key}: \d+ *# (\w+): ", f"{line:31} # {size.arithmetic}; \\1: ", text)
        else:
            text += f"{line:31} # {size.arithmetic}; the default cut like the preset's sizes\n"
    return text


def show(
    name: str | None = None,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> int:
    """Show a recipe file with every value and where it came from, or a preset with its evidence.

    Without a name it lists the presets.

    Args:
        name: A recipe file, or the name of a preset.
        set_: key=value on top of a recipe file; may be given several times.
    """
    from sengi.recipe_sources import preset_names, resolve_recipe

    if name is None:
        print_presets()
    elif name in preset_names() or not (Path(name).exists() or name.endswith((".yaml", ".yml"))):
        print_preset(name)
    else:
        out.file.write(resolve_recipe(name, set_ or ()).to_yaml())
    return 0


def print_preset(name: str) -> None:
    """A preset: what it is, and each value with its source and how sure that is."""
    from rich.table import Table

    from sengi.presets.evidence import preset_title, preset_values

    values = preset_values(name)
    out.print(f"preset {name}: {preset_title(name)}", soft_wrap=True, markup=False)
    table = Table(show_lines=True)
    for column in ("key", "value", "confidence", "source"):
        table.add_column(column, overflow="fold")
    for value in values:
        table.add_row(value.key, value.text, value.confidence, value.source)
    out.print(table)


def print_presets() -> None:
    """All presets with the sentence that says what each is."""
    from rich.table import Table

    from sengi.presets.evidence import preset_title
    from sengi.recipe_sources import preset_names

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name in preset_names():
        table.add_row(name, preset_title(name))
    out.print(table)


def schema(*, json: bool = False, markdown: bool = False) -> int:
    """Explain every key of a recipe: what it is, its default and the reason for the default.

    Args:
        json: Print the JSON schema, for editors and checks.
        markdown: Print the reference page of the documentation.
    """
    import json as json_module

    from sengi.recipe import Recipe, default_reason, description, documented_names, field_of, values_of

    if json:
        out.file.write(json_module.dumps(Recipe.model_json_schema(), indent=2) + "\n")
        return 0
    rows = []
    for key in documented_names():
        values = ", ".join(f"``{value}``" for value in values_of(key))
        what = f"{description(key)} Values: {values}." if values else description(key)
        rows.append((key, default_text(field_of(key)), what, default_reason(key)))
    if markdown:
        out.file.write(reference_page(rows))
        return 0
    from rich.table import Table

    table = Table(show_lines=True)
    for column in ("key", "default", "what it is", "why this default"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("``", "") for cell in row))
    out.print(table)
    return 0


def default_text(field: Any) -> str:
    """The default of a pydantic field as a recipe would write it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "-" if value is None else "none" if value in ([], {}) else str(value)


def reference_page(rows: list[tuple[str, str, str, str]]) -> str:
    """docs/recipe-reference.md, generated from the schema."""
    lines = [
        "# Recipe reference",
        "",
        "Generated by `sengi recipe schema --markdown`; a test keeps it equal to the schema.",
        "",
        "| key | default | what it is | why this default |",
        "|---|---|---|---|",
        *[
            "| `" + row[0] + "` | " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in row[1:]) + " |"
            for row in rows
        ],
        "",
        "An entry of `eval_data` has the keys of one of `data`; a plain string is a path.",
        "",
    ]
    return "\n".join(lines)
