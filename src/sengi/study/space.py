"""Which runs a study has: the points of its space, each with every seed, under names that never change."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi.study.dimensions import Space, grid_points
from sengi.study.study_file import StudyFile

RUNS = "runs"  # folder of the run folders
SETTINGS = "settings.json"  # in a run folder: the point of the space that it belongs to
_NAME = re.compile(r"(\d{3,6})-s(\d{1,10})")


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        name: ``<point>-s<seed>``, also the name of its folder.
        point: number of its point, from 1.
        seed: of the recipe.
        settings: what its point says, key of the space -> value, or name of several values.
        folder: the run folder.
    """

    name: str
    point: int
    seed: int
    settings: dict[str, Any]
    folder: Path

    @property
    def request(self) -> Path:
        """The recipe of the run, as the study wrote it before the run began."""
        return self.folder / "request.json"


def grid(file: StudyFile) -> list[dict[str, Any]]:
    """All points of a grid."""
    return grid_points(file.space)


def runs_of(file: StudyFile, point: int, settings: dict[str, Any], folder: Path) -> list[Run]:
    """The runs of one point, a seed each."""
    names = [f"{point:03}-s{seed}" for seed in file.seeds]
    return [
        Run(name, point, seed, settings, folder / RUNS / name) for name, seed in zip(names, file.seeds, strict=True)
    ]


def known_points(folder: Path, space: Space) -> dict[int, dict[str, Any]]:
    """The points whose run folders were begun: number -> settings, as the study wrote them there.

    Args:
        folder: the study folder.
        space: of the study.
    """
    points: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / RUNS).iterdir()) if (folder / RUNS).is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match and (path / "request.json").is_file():
            recipe = json.loads((path / "request.json").read_text(encoding="utf-8"))
            asked = path / SETTINGS  # folders begun before there were names for several keys have none
            settings = json.loads(asked.read_text(encoding="utf-8")) if asked.is_file() else recipe
            points[int(match[1])] = {key: settings[key] for key in space}
    return points


def settings_text(settings: dict[str, Any]) -> str:
    """Settings on one line, for tables and as a key."""
    return ", ".join(f"{key} {_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
