"""The runs of a study as claims compare them: by levels of a recipe key, in blocks of runs that agree in the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sengi.study.contrasts import Contrast, Trained, contrast, seed_spread
from sengi.study.ranking import peak_of, spread_of, trained
from sengi.study.results import RunResult, StudyResults
from sengi.study.space import settings_text

OWN = ("output_dir", "seed", "max_steps", "num_train_epochs", "preset", "report_to")  # differ without meaning anything
LAYOUT = ("max_tokens_per_device", "fsdp_sharding_strategy", "gradient_checkpointing", "torch_compile", "processes")
PHASES = ("strategy", "phases")
CONFIGURATION = ("effective_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps")
MARGIN = 0.01  # of a share, or relative to the best score: less is not worth speaking of
EARLY_STEPS = 3  # that the largest batch must take where early losses are compared


@dataclass(frozen=True)
class Level:
    """Runs that share a value.

    Attributes:
        name: what they differ in, for people; ``text`` the value.
        value: the value.
        runs: with it.
        apart: keys in which a comparison of such levels may differ.
    """

    name: str
    text: str
    value: Any
    runs: list[RunResult]
    apart: tuple[str, ...]


class Field:
    """All runs of a study, ready to be compared.

    Args:
        results: the study.
    """

    def __init__(self, results: StudyResults) -> None:
        self.results = results
        self.runs = sorted(results.scored, key=lambda run: run.name)

    @cached_property
    def varied(self) -> list[str]:
        """Recipe keys in which runs differ and that may matter."""
        recipes = [_recipe(run) for run in self.results.runs]
        keys = sorted({key for recipe in recipes for key in recipe})
        return [
            key
            for key in keys
            if key not in OWN
            and not key.startswith(("eval_", "save_"))
            and len({json.dumps(recipe.get(key), sort_keys=True) for recipe in recipes}) > 1
        ]

    @cached_property
    def margin(self) -> float:
        """What counts as equal, in the unit of the objective."""
        scores = [run.score.value for run in self.runs if run.score is not None]
        if not scores:
            return 0.0
        if not self.results.minimize and all(0 <= score <= 1 for score in scores):
            return MARGIN
        return MARGIN * abs(min(scores) if self.results.minimize else max(scores))

    def levels(self, key: str, among: Sequence[RunResult] | None = None, scored: bool = True) -> list[Level]:
        """Runs by their value of a recipe key, in rising order.

        Args:
            key: the recipe key.
            among: look at these only.
            scored: leave out runs without a final score.
        """
        runs = self.runs if scored else sorted(self.results.runs, key=lambda run: run.name)
        chosen = [run for run in runs if among is None or run in among]
        values = sorted({run.recipe[key] for run in chosen if key in run.recipe})
        return [
            Level(key, settings_text({"": v}).strip(), v, [run for run in chosen if run.recipe[key] == v], (key,))
            for v in values
        ]

    def lacks(self, key: str, levels: Sequence[Level], where: str = "", needs: str = "two values or more") -> str:
        """Why a claim about a key cannot be told."""
        if not levels:
            return "no run has finished with a score"
        have = " and ".join(level.text for level in levels)
        return f"all finished runs{where} have {key} {have}; a study with {needs} of it can tell"

    def strategy(self, name: str, by_length: bool = False) -> Level:
        """Runs of a strategy; phased ones split by response length, or in another way."""
        runs = [run for run in self.runs if run.recipe.get("strategy", "stacked") == name]
        if name == "phased":
            runs = [run for run in runs if (_phases_by(run) == "response_length") == by_length]
        text = f"{name} by response length" if by_length else name
        return Level("strategy", text, name, runs, PHASES)

    def layouts(self) -> list[Level]:
        """Runs by how their steps were cut into micro-batches and spread over devices; the most common first."""
        apart = tuple(key for key in LAYOUT if key in self.varied)
        texts = {run.name: settings_text({key: _recipe(run).get(key) for key in apart}) for run in self.runs}
        names = sorted(set(texts.values()), key=lambda text: (-list(texts.values()).count(text), text))
        return [
            Level("layout", text, text, [run for run in self.runs if texts[run.name] == text], apart) for text in names
        ]

    def configurations(self) -> tuple[Level, Level]:
        """Runs like LAB's configuration and like TULU's: by the preset's name, else by batch, schedule and warm-up."""
        lab = [run for run in self.runs if str(run.settings.get("preset", "")).startswith("lab")]
        tulu = [run for run in self.runs if str(run.settings.get("preset", "")).startswith("tulu")]
        if "preset" not in self.results.keys:
            sizes = [run.recipe["effective_batch_size"] for run in self.runs]
            for run in self.runs:
                batch, decay = run.recipe["effective_batch_size"], run.recipe["lr_scheduler_type"]
                warm = run.recipe["warmup_steps"] > 0
                if batch == max(sizes) > min(sizes) and decay == "constant" and not warm:
                    lab.append(run)
                elif batch == min(sizes) < max(sizes) and decay == "linear" and warm:
                    tulu.append(run)
        name = "configuration"
        return Level(name, "LAB", "lab", lab, CONFIGURATION), Level(name, "TULU", "tulu", tulu, CONFIGURATION)

    def contrast(self, one: Level, other: Level, confidence: float) -> Contrast | None:
        """How much better the final scores of ``other`` are than those of ``one``, all else equal."""
        apart = (*one.apart, *other.apart)
        sides = [[trained(self.results, run, self._block(run, apart)) for run in level.runs] for level in (one, other)]
        return contrast(sides[0], sides[1], spread_of(self.results), confidence)

    def early_losses(self, small: Level, large: Level) -> tuple[Contrast | None, int]:
        """How far the training loss of ``small`` lies below that of ``large`` over the same early samples.

        Returns:
            The contrast in nats, None where no such runs got so far; and the samples, 0 where the larger batch takes
            too few steps in the early window.
        """
        size = max(int(run.recipe["effective_batch_size"]) for run in large.runs)
        samples = self.results.judge.early_samples // size * size
        if samples < EARLY_STEPS * size:
            return None, 0
        sides: list[list[Trained]] = []
        points: dict[int, list[float]] = {}
        for level in (large, small):
            side = []
            for run in level.runs:
                loss = _mean_loss(run, samples)
                if math.isfinite(loss):
                    side.append(Trained(run.name, self._block(run, level.apart), run.seed, -loss, {}))
                    points.setdefault(run.point, []).append(loss)
            sides.append(side)
        return contrast(sides[0], sides[1], seed_spread(points)), samples

    def samples_to_peak(self, stacked: Level, phased: Level) -> str:
        """Where both strategies were best, in words: the second half of the claim."""
        means = [
            float(np.mean([peak_of(run, self.results.minimize).samples for run in level.runs]))
            for level in (stacked, phased)
        ]
        fewer = "fewer" if means[0] < means[1] else "as many" if means[0] == means[1] else "more"
        return f"samples to the peak {means[0]:,.0f} stacked and {means[1]:,.0f} phased, {fewer} when stacked"

    def loss_gap(self, layouts: Sequence[Level]) -> str:
        """The largest difference of training losses at one step between runs that differ in layout alone."""
        apart = layouts[0].apart
        curves: dict[tuple[str, int], list[tuple[float, ...]]] = {}
        for level in layouts:
            for run in level.runs:
                curves.setdefault((self._block(run, apart), run.seed), []).append(run.history.loss)
        gaps = [
            max(abs(a - b) for a, b in zip(first, other, strict=False))
            for first, *others in curves.values()
            for other in others
        ]
        return f"training losses of one step differ by {max(gaps):.2g} at most" if gaps else "no two share a seed"

    def _block(self, run: RunResult, apart: Sequence[str]) -> str:
        recipe = _recipe(run)
        return settings_text({key: recipe.get(key) for key in self.varied if key not in apart})


def _recipe(run: RunResult) -> dict[str, Any]:
    return {**run.recipe, "processes": run.processes}


def _phases_by(run: RunResult) -> str:
    phases = run.recipe.get("phases")
    return str(phases.get("by", "")) if isinstance(phases, dict) else ""


def _mean_loss(run: RunResult, samples: int) -> float:
    """Mean training loss over the first samples; NaN where the run did not get so far."""
    if run.samples_seen < samples:
        return math.nan
    steps = [loss for seen, loss in zip(run.history.samples_seen, run.history.loss, strict=True) if seen <= samples]
    return float(np.mean(steps))
