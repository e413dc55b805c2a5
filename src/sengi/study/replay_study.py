"""Replay of a study folder: read its recordings, replay them, say what was found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import InputError
from sengi.recipe_sources import resolve_recipe
from sengi.study.findings import Correlation, correlations, sentences
from sengi.study.judge import JudgeSettings
from sengi.study.recording import final_score, group, history, objective_points, read_mapping, step_of
from sengi.study.replay import Outcome, Recording, replay
from sengi.study.scheduler import REQUEST
from sengi.study.space import known_points, runs_of, settings_text
from sengi.study.study_file import CHECK_SHARE, EARLY_SHARE, StudyFile, StudyRequest, read_study
from sengi.study.watched import OUTCOME


@dataclass(frozen=True)
class StudyReplay:
    """The replay of one study.

    Attributes:
        study: its folder.
        objective, minimize: of the study.
        runs: that were replayed; ``left_out`` the others, a sentence each.
        outcomes: by policy.
        correlations: of early signals with final scores.
        findings: sentences.
    """

    study: str
    objective: str
    minimize: bool
    runs: int
    left_out: list[str]
    outcomes: list[Outcome]
    correlations: list[Correlation]
    findings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; NaN becomes None."""
        return dict(_finite(asdict(self)))


def replay_study(folder: Path) -> StudyReplay:
    """Replay a study folder.

    Raises:
        InputError: it is no study, or too few of its runs finished.
    """
    if not (folder / REQUEST).is_file():
        raise InputError(f"{folder}: no study folder (it has no {REQUEST}); give the output_dir of a study")
    request = read_study(folder / REQUEST)
    recordings, left_out = read_recordings(request, folder)
    settings = judge_settings(request.file)
    try:
        outcomes = replay(recordings, settings, request.file.minimize)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    found = correlations(recordings, settings, request.file.minimize)
    best = (min if request.file.minimize else max)(recordings, key=lambda recording: recording.score).evaluations[-1]
    return StudyReplay(
        str(folder),
        request.file.objective,
        request.file.minimize,
        len(recordings),
        left_out,
        outcomes,
        found,
        sentences(outcomes, found, (best.high - best.low) / (2 * 1.96)),
    )


def judge_settings(file: StudyFile) -> JudgeSettings:
    """Those of the study, or the defaults where it ran without a judge."""
    settings = file.judge_settings()
    return settings or JudgeSettings(
        max(1, round(CHECK_SHARE * file.budget_samples)), max(1, round(EARLY_SHARE * file.budget_samples))
    )


def read_recordings(request: StudyRequest, folder: Path) -> tuple[list[Recording], list[str]]:
    """The finished runs of a study, and why others are left out. Nothing is written."""
    recordings, left_out = [], []
    for point, settings in sorted(known_points(folder, request.file.space).items()):
        for run in runs_of(request.file, point, settings, folder):
            state = read_mapping(run.folder / OUTCOME).get("state", "not finished")
            if state != "finished":
                left_out.append(f"{run.name}: {state}, so it has no final score")
                continue
            recipe = resolve_recipe(run.request).recipe
            score = final_score(run.folder, request.file.objective)
            points = objective_points(run.folder, request.file.objective)[:-1]
            warmup = recipe.warmup_count(int(recipe.max_steps or 0))
            records = storage.read_lines(run.folder / "dynamics.jsonl")
            batch = recipe.effective_batch_size
            steps = [step_of(record) for record in records]
            told = history(run.name, settings_text(settings), steps, batch, warmup, group=group(recipe))
            recordings.append(Recording(told, (*points, score)))
    return recordings, left_out


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value
