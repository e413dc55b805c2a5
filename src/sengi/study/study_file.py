"""The study file: what a user can ask of a study, with the strictness and the errors of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError, field_validator, model_validator

from sengi.errors import RecipeError
from sengi.recipe import Recipe, Strict
from sengi.recipe_sources import nearest, read_yaml, resolve_recipe
from sengi.study.dimensions import (
    Range,
    ScaledEntry,
    Space,
    check_phases,
    check_spaces,
    grid_points,
    is_searched,
    recipe_values,
    settle_ranges,
    trial_points,
)
from sengi.study.judge import JudgeSettings
from sengi.study.objective import HELDOUT, check_objective, is_minimized
from sengi.study.study_presets import check_preset

EPOCHS = 10_000  # the budget ends a run, not its epochs
CHECK_SHARE, EARLY_SHARE = 0.05, 0.3  # of the budget: a check every 5%, none after 30%


class Executor(Strict):
    """Where runs train."""

    kind: Literal["local", "ray"] = "local"
    """``local``: subprocesses on this machine; ``ray``: a Ray cluster."""
    parallel: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Runs at a time; ``auto`` is as many as there are GPUs for, or one on a machine without and as many as its CPUs
    take on a cluster without. On one machine, CPU cores are shared out evenly."""
    processes_per_run: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes of one run, started by torchrun or Ray Train; each takes one GPU where there are any."""
    cpus_per_process: Annotated[int, Field(ge=1, le=1024)] = 1
    """Cores that Ray sets aside for each process."""
    address: str = "auto"
    """Of the Ray cluster: ``auto`` finds the one that this machine belongs to."""

    @model_validator(mode="after")
    def _check_kind(self) -> Executor:
        for key in ("cpus_per_process", "address") if self.kind == "local" else ():
            if (value := getattr(self, key)) != Executor.model_fields[key].default:
                raise ValueError(f"{key} is {value}, but only Ray reads it; set kind: ray or remove {key}")
        return self


class EarlyTermination(Strict):
    """What the judge of early termination may do (docs/study.md)."""

    mode: Literal["off", "advise", "terminate"] = "advise"
    """``advise`` marks the runs that look worst early in training, ``terminate`` stops them."""
    audit: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the runs that terminate would stop and that run on, to measure what stopping costs."""
    min_survivors: Annotated[int, Field(ge=1)] = 1
    """Learning runs that are never stopped."""
    check_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples between checks; by default 5% of budget_samples."""
    early_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples of the last check; by default 30% of budget_samples. A stop falls before the check that would follow."""
    fair_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least fall of the loss, as a share of the fastest run's, that a run needs to be compared."""

    @model_validator(mode="after")
    def _check_audit(self) -> EarlyTermination:
        if self.audit and self.mode != "terminate":
            raise ValueError(
                f"audit is {self.audit:g}, but mode {self.mode} stops no run that could go on instead; set mode: "
                "terminate or remove audit"
            )
        return self


class StudyFile(Strict):
    """One study."""

    recipe: str | dict[str, Any]
    """What the runs have in common: a recipe file, or a recipe in place."""
    output_dir: str = Field(min_length=1)
    """Study folder; a second call continues the study in it."""
    space: Space = Field(default_factory=dict)
    """Recipe keys that differ. Lists make a grid; as soon as there is a range, all are searched by Optuna. A mapping
    gives names to sets of several keys."""
    stages: dict[str, Space] = Field(default_factory=dict)
    """Name -> space, in place of ``space``: studies one after another, each from the best settings so far."""
    num_trials: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Points to search where the space has a range."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(
        default_factory=lambda: [42]
    )
    """Each point of the space is run once with each of these seeds."""
    budget_samples: Annotated[int, Field(ge=1)]
    """Samples that every run sees, whatever its batch size."""
    objective: Annotated[str, Field(min_length=1)] = HELDOUT
    """``heldout_loss``, or a score of eval_questions or eval_tasks as ``task/metric``."""
    executor: Executor = Field(default_factory=Executor)
    """Where and how many at a time."""
    early_termination: EarlyTermination = Field(default_factory=EarlyTermination)
    """Whether runs that look worse early in training are marked or stopped."""
    preset: str | None = None
    """The study preset that this file was made from (``sengi study init``): its question and the paper's answer are
    shown with the result."""
    scale: list[ScaledEntry] = Field(default_factory=list)
    """What ``sengi study init --scale`` made of the paper's sizes: a record, decides nothing."""
    storage: str | None = None
    """Address of a PostgreSQL database for the Optuna index; by default SQLite in the study folder."""

    @field_validator("space")
    @classmethod
    def _whole_ranges(cls, space: Space) -> Space:
        return settle_ranges(space)

    @field_validator("stages")
    @classmethod
    def _whole_ranges_of_stages(cls, stages: dict[str, Space]) -> dict[str, Space]:
        return {name: settle_ranges(space) for name, space in stages.items()}

    @property
    def searched(self) -> bool:
        """Whether Optuna chooses the points; else they are a grid."""
        return any(map(is_searched, self.stages.values() or [self.space]))

    @property
    def minimize(self) -> bool:
        """Whether a lower score is better."""
        return is_minimized(self.objective)

    def early_window(self) -> tuple[int, int]:
        """Samples between checks, and those after which there is none."""
        asked = self.early_termination
        check = asked.check_samples or max(1, round(CHECK_SHARE * self.budget_samples))
        return check, asked.early_samples or max(1, round(EARLY_SHARE * self.budget_samples))

    def judge_settings(self) -> JudgeSettings | None:
        """How the judge is to work, or None where it is off."""
        asked = self.early_termination
        if asked.mode == "off":
            return None
        check, early = self.early_window()
        return JudgeSettings(
            check_samples=check,
            early_samples=early,
            mode=asked.mode,
            audit=asked.audit,
            min_survivors=asked.min_survivors,
            fair_share=asked.fair_share,
        )


@dataclass(frozen=True)
class StudyRequest:
    """A study file whose recipe was read: all that the study needs to know.

    Attributes:
        file: the study file.
        base: keys and values of its recipe.
        chain: folder of the study that this one is a stage of, if it is one.
    """

    file: StudyFile
    base: dict[str, Any]
    chain: Path | None = None

    @property
    def folder(self) -> Path:
        """The study folder."""
        return Path(self.file.output_dir)

    @property
    def stop_places(self) -> list[Path]:
        """Folders in which a request to stop is meant for this study."""
        return [self.folder, *([self.chain] if self.chain is not None else [])]

    def run_values(self, settings: Mapping[str, Any], seed: int, output_dir: Path) -> dict[str, Any]:
        """The recipe of one run, as keys and values.

        Raises:
            RecipeError: the settings make no valid recipe.
        """
        point = recipe_values(self.file.space, settings)
        values = {"save_total_limit": 1, **self.base, **point, "seed": seed, "output_dir": str(output_dir)}
        batch = _resolve({**values, "max_steps": 1}, settings).effective_batch_size
        if batch > self.file.budget_samples:
            raise RecipeError(
                f"budget_samples is {self.file.budget_samples:,}, but effective_batch_size is {batch:,}: not one step; "
                "raise budget_samples or lower the batch"
            )
        values |= {"max_steps": self.file.budget_samples // batch, "num_train_epochs": EPOCHS}
        check_phases(recipe := _resolve(values, settings))
        check_objective(self.file.objective, recipe)
        return values

    def identity(self) -> dict[str, Any]:
        """What makes it this study: everything that decides which runs there are and how they are scored."""
        space = "stages" if self.file.stages else "space"
        asked = self.file.model_dump(mode="json", include={space, "seeds", "budget_samples", "objective"})
        return {"recipe": self.base, **asked}

    def to_json(self) -> bytes:
        """The whole request as a study file of its own: JSON, which is YAML."""
        values = {**self.file.model_dump(mode="json"), "recipe": self.base}
        return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def read_study(path: Path) -> StudyRequest:
    """Read and check a study file; its relative paths count from the working directory, as those of a recipe do.

    Raises:
        RecipeError: naming the place, the key and the cure.
    """
    if not path.is_file():
        nearby = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such study file{nearest(path.name, nearby)}; docs/study.md shows one")
    return study_from(*read_yaml(path), path)


def study_from(values: dict[str, Any], places: Mapping[str, str], path: Path) -> StudyRequest:
    """Check the keys and values of a study file.

    Args:
        values: as read from YAML.
        places: file and line of each key.
        path: the file, for messages.

    Raises:
        RecipeError: naming the place, the key and the cure.
    """
    known = list(StudyFile.model_fields)
    for key in values:
        if key not in known:
            raise RecipeError(
                f"{places[key]}: a study has no key '{key}'{nearest(key, known)}; it has {', '.join(known)}"
            )
    if isinstance(values.get("executor"), str):
        values["executor"] = {"kind": values["executor"]}
    check_spaces(values, places, path)
    try:
        file = StudyFile.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, places, path)) from None
    base = file.recipe if isinstance(file.recipe, dict) else read_yaml(Path(file.recipe))[0]
    request = StudyRequest(file, base)
    _check_together(file, places)
    check_points(request)
    return request


def check_points(request: StudyRequest) -> None:
    """Make the recipes of a study, so that what no recipe takes is found now and not in run 17: all of a grid; of a
    search every value and end, whose combinations are too many.

    Raises:
        RecipeError: naming the settings and what is wrong with them.
    """
    file, base = request.file, request.base
    for space in file.stages.values():
        stage = StudyRequest(file.model_copy(update={"space": space, "stages": {}}), base)
        check_points(stage)
        base = {**base, **recipe_values(space, trial_points(space)[0])}  # as good as any, before the stage has run
    if file.stages:
        return
    for settings in trial_points(file.space) if is_searched(file.space) else grid_points(file.space):
        request.run_values(settings, file.seeds[0], request.folder)


def _check_together(file: StudyFile, places: Mapping[str, str]) -> None:
    if file.preset is not None:
        check_preset(file.preset, places["preset"])
    if file.searched and file.num_trials is None:
        place = places.get("space") or places["stages"]
        raise RecipeError(f"{place}: the space has a range; add num_trials, the points to search")
    if not file.searched and file.num_trials is not None:
        raise RecipeError(f"{places['num_trials']}: num_trials is for ranges, but this space is a grid; remove it")
    check, early = file.early_window()
    if check > (end := min(early, file.budget_samples)):
        raise RecipeError(
            f"{places['early_termination']}: early_termination checks every {check:,} samples, but its window ends at "
            f"{end:,}, so nothing would be checked; lower check_samples"
        )
    if len(set(file.seeds)) < len(file.seeds):
        raise RecipeError(f"{places['seeds']}: a seed is listed twice; it would be the same run")
    if file.storage is not None and not file.storage.startswith("postgresql"):
        raise RecipeError(
            f"{places['storage']}: storage is '{file.storage}'; write postgresql://USER@HOST/DATABASE, or remove it "
            "for SQLite in the study folder"
        )
    if file.storage is not None and _holds_password(file.storage):
        raise RecipeError(
            f"{places['storage']}: storage holds a password; remove it and set PGPASSWORD or ~/.pgpass, which are not "
            "written into the study folder"
        )


def _holds_password(address: str) -> bool:
    """Whether a database's address has a password, before its host or among what follows its name."""
    asked = {key.lower() for key, _ in parse_qsl(address.partition("?")[2], keep_blank_values=True)}
    return ":" in address.partition("://")[2].rpartition("@")[0] or bool(asked & {"password", "sslpassword"})


def _resolve(values: dict[str, Any], settings: Mapping[str, Any]) -> Recipe:
    """Check a run's recipe; an error says for which settings."""
    try:
        recipe = resolve_recipe(values=dict(values)).recipe
    except RecipeError as error:
        shown = ", ".join(f"{key} {value}" for key, value in settings.items())
        raise RecipeError(f"the run with {shown}: {error}") from None
    return recipe


def _explain(error: ValidationError, places: Mapping[str, str], path: Path) -> str:
    """The first problem as a sentence with its place."""
    # a range that is wrong is also no list: only what is said of it as a range helps
    problems = [e for e in error.errors(include_url=False) if "list[any]" not in e["loc"]]
    first = next((e for e in problems if e["type"] == "extra_forbidden"), problems[0])
    names = [str(part) for part in first["loc"]]
    parts = [name for name in names if not ("Range" in name or name in ("dict[str,any]", "str", "int"))]
    key, place = ".".join(parts), places.get(parts[0], str(path)) if parts else str(path)
    if first["type"] == "missing":
        return f"{place}: {key}: missing; add '{key}: ...'"
    if first["type"] == "extra_forbidden":
        parents: dict[str, type[Strict]] = {"executor": Executor, "early_termination": EarlyTermination}
        known = Range if parts[0] in ("space", "stages") else parents.get(parts[0], StudyFile)
        return f"{place}: there is no key '{key}'{nearest(parts[-1], known.model_fields)}; see docs/study.md"
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    got = "" if isinstance(first["input"], dict | list) else f", got {first['input']!r}"
    return f"{place}: {key}: {message}{got}; see docs/study.md"
