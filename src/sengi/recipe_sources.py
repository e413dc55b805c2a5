"""Where a recipe's values come from: preset < recipe file < ``--set`` < Python, and the origin of each.

One pure function, :func:`resolve_recipe`, merges them; YAML is read with line numbers so that an error names
the place, and with YAML 1.2 floats, because PyYAML alone reads ``2e-5`` as a string.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sengi.errors import RecipeError
from sengi.recipe import DataEntry, Recipe, default_reason, field_names
from sengi.recipe_parts import Phases, PhaseSettings

# Keys of other trainers that are left out on purpose, with the reason
LEFT_OUT = {
    "lora_dropout": "dropout noise would depend on how samples are packed; remove it (docs/lora.md)",
}
MAX_RECIPE_BYTES = 1 << 20  # a recipe is a page of text; anything longer is a mistake or an attack


_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
)


class _Loader(yaml.SafeLoader):
    """Safe YAML with JSON-like floats (``2e-5``) and without aliases, which can blow up memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not allowed in a recipe", event.start_mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    # YAML 1.1 reads on/off/yes/no as booleans; keep true and false only
    key: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes the words that :class:`_Loader` would read as numbers (a folder called ``1e3``)."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class ResolvedRecipe:
    """A validated recipe and, for each key, the place its value came from (``default``, ``preset lab``, ...)."""

    recipe: Recipe
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """The whole recipe as YAML, each value with its origin behind it; reading it back gives the same."""
        lines = ["# Resolved recipe: every key, with the place its value came from."]
        for key, value in self.recipe.model_dump(mode="json").items():
            first, *rest = dump_yaml({key: value}).rstrip("\n").split("\n")
            comment = f"  # {self.origins.get(key, 'default')}"
            lines += [first, *rest] if rest else [first + comment]
        return "\n".join(lines) + "\n"


def dump_yaml(values: Mapping[str, Any], short: bool = False) -> str:
    """Values as YAML that :func:`read_yaml` reads back as the same.

    Args:
        values: keys and values.
        short: lists and mappings of single values on one line.
    """
    style = None if short else False
    return yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=style
    )


def resolve_recipe(
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> ResolvedRecipe:
    """Merge preset, file, ``key=value`` overrides and Python values, in this order of rising precedence.

    Args:
        file: YAML recipe.
        overrides: ``key=value`` as given to ``--set``; the value is YAML; ``data.0.path=x`` reaches inside.
        values: keys and values from Python.

    Raises:
        RecipeError: naming the key, its origin, the value and the cure.
    """
    layers: list[tuple[dict[str, Any], dict[str, str]]] = []
    if file is not None:
        layers.append(read_yaml(Path(file)))
    top: dict[str, Any] = dict(values or {})
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, places in layers:
        merged.update(layer)
        origins.update(places)
    overrides = list(overrides)
    for item in overrides:
        if item.partition("=")[0].strip() == "preset":
            _apply_override(merged, origins, item)
    if (preset := top.get("preset", merged.get("preset"))) is not None:
        below = read_preset(str(preset))  # under the overrides, which may reach inside one of its values
        origins = {**dict.fromkeys(below, f"preset {preset}"), **origins}
        merged = {**below, **merged}
    for item in overrides:
        _apply_override(merged, origins, item)
    merged.update(top)
    origins.update(dict.fromkeys(top, "Python"))
    _refuse_unknown(merged, origins, field_names(), "")
    return ResolvedRecipe(_validate(merged, origins), origins)


def preset_names() -> list[str]:
    """Names that ``preset`` accepts."""
    folder = resources.files("sengi") / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The YAML of a preset with its evidence as comments.

    Raises:
        RecipeError: no such preset; names the nearest, or all.
    """
    if name not in preset_names():
        hint = nearest(name, preset_names()) or f"; there are {', '.join(preset_names())}"
        raise RecipeError(f"preset: there is no preset '{name}'{hint}")
    return (resources.files("sengi") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def read_preset(name: str) -> dict[str, Any]:
    """Keys and values of a preset."""
    return dict(yaml.load(preset_text(name), Loader=_Loader))  # noqa: S506 - _Loader derives from SafeLoader


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys and values of a YAML mapping, and the ``file:line`` of each key.

    Raises:
        RecipeError: no such file, or it is not a mapping that can be read without doubt.
    """
    if not path.is_file():
        nearby = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such recipe file{nearest(path.name, nearby)}; 'sengi recipe init' writes one")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(
            f"{path}: {path.stat().st_size:,} bytes is no recipe (at most {MAX_RECIPE_BYTES:,}); check the path"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=_Loader)
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader derives from SafeLoader
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}; mend that line") from None
    if not isinstance(node, yaml.MappingNode) or not isinstance(loaded, dict):
        raise RecipeError(f"{path}: a recipe is a list of 'key: value' lines; see 'sengi recipe init'")
    _refuse_twice(node, path)
    lines = {key_node.value: f"{path.name}:{key_node.start_mark.line + 1}" for key_node, _ in node.value}
    return {str(key): value for key, value in loaded.items()}, lines


def _refuse_twice(node: yaml.Node, path: Path) -> None:
    """A key that is given twice in one mapping, at any depth: YAML keeps the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.value in seen:
            raise RecipeError(f"{path}:{key.start_mark.line + 1}: {key.value} is given twice; keep one")
        seen.add(key.value)
        _refuse_twice(value, path)


def _apply_override(merged: dict[str, Any], origins: dict[str, str], item: str) -> None:
    key, equals, text = item.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"--set {item}: write --set key=value, for example --set learning_rate=1e-5")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader derives from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {item}: the value is not valid YAML; quote it") from None
    head, *rest = key.split(".")
    origins[head] = "--set"
    if not rest:
        merged[head] = value
        return
    _refuse_unknown({head: None}, origins, field_names(), "")
    target = merged.setdefault(head, {} if head == "phases" else [])
    try:
        for part in rest[:-1]:
            target = target[int(part)] if isinstance(target, list) else target[part]
        last = rest[-1]
        target[int(last) if isinstance(target, list) else last] = value
    except (KeyError, IndexError, ValueError, TypeError):
        raise RecipeError(f"--set {item}: '{key}' points at nothing in this recipe; entries count from 0") from None


def _refuse_unknown(values: Mapping[str, Any], origins: Mapping[str, str], known: list[str], inside: str) -> None:
    for key in values:
        if key not in known:
            place = origins.get(key, inside)
            where = f"{place}: " if place else ""
            if key in LEFT_OUT:
                raise RecipeError(f"{where}there is no key '{key}': {LEFT_OUT[key]}")
            raise RecipeError(f"{where}there is no key '{key}'{nearest(key, known)}; 'sengi recipe schema' lists all")
    for key in ("data", "eval_data"):
        entries = values.get(key)
        where = f"{origins[key]}: {key}" if key in origins else key
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, Mapping):
                _refuse_unknown(entry, {}, list(DataEntry.model_fields), f"{where} entry {number + 1}")
    if isinstance(phases := values.get("phases"), Mapping):
        where = f"{origins['phases']}: phases" if "phases" in origins else "phases"
        _refuse_unknown(phases, {}, list(Phases.model_fields), where)
        own = phases.get("settings")
        for name, part in own.items() if isinstance(own, Mapping) else ():
            if isinstance(part, Mapping):
                _refuse_unknown(part, {}, list(PhaseSettings.model_fields), f"{where}.settings.{name}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where one of ``known`` looks like ``name``, else empty; the end of a message."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


def _validate(values: dict[str, Any], origins: Mapping[str, str]) -> Recipe:
    for key in ("data", "eval_data"):  # a plain path is a data entry, too
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
        if isinstance(values.get(key), list):
            values[key] = [{"path": item} if isinstance(item, str) else item for item in values[key]]
    for key in ("eval_questions", "report_to"):
        if isinstance(values.get(key), str):
            values[key] = [] if values[key] == "none" else [values[key]]
    targets = values.get("lora_target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        values["lora_target_modules"] = [targets]
    if isinstance(values.get("eval_tasks"), str):  # as on the command line of sengi eval
        values["eval_tasks"] = [word.strip() for word in values["eval_tasks"].split(",") if word.strip()]
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(_explain(first, origins)) from None


def _explain(problem: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    where = problem["loc"]
    if len(where) > 1 and where[-1] == "int" and problem["type"].startswith("int_"):
        where = where[:-1]  # pydantic names the kind of a key that takes several
    place = ".".join(str(part) for part in where)
    head = str(problem["loc"][0]) if problem["loc"] else ""
    origin = f" ({origins[head]})" if head in origins else ""
    if problem["type"] == "missing":
        return f"{place}: missing; add '{place}: ...' to the recipe or --set {place}=..."
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    got = "" if isinstance(problem["input"], dict | list) or not head else f", got {problem['input']!r}"
    reason = default_reason(head) if head in Recipe.model_fields else ""
    default = Recipe.model_fields[head].default if head in Recipe.model_fields else None
    cure = f"; the default is {default} ({reason})" if reason else "; see 'sengi recipe schema'"
    cure = "; see docs/phases.md" if head == "phases" else cure
    return f"{place}: {message}{got}{origin}{cure}" if place else f"{message}{origin}"
