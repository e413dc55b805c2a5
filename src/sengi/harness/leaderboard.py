"""The Open LLM Leaderboard, first and second edition: their tasks, settings, and the average that lm-eval lacks.

First edition (2023 to June 2024): six benchmarks with fixed few-shot counts and no chat template; raw scores, the
plain mean of the six. https://huggingface.co/docs/leaderboards/open_llm_leaderboard/archive

Second edition (June 2024 to March 2025): lm-eval's ``leaderboard`` tasks, whose YAML holds the few-shot counts; chat
models with their chat template and few-shot examples as turns. Scores are normalised to 0 at chance and 100 at all
right, below chance is 0. Subtasks (BBH, MuSR) are normalised each with its number of choices, then averaged; GPQA
(chance 1/4) and MMLU-Pro (1/10) as a whole; MATH and IFEval have chance 0, IFEval being the mean of strict accuracy by
prompt and by instruction. https://huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization (the numbers of
choices are those of the notebook linked there: it counts 19 for object_counting, 18 for colored objects)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BBH_CHOICES = {
    "boolean_expressions": 2,
    "causal_judgement": 2,
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "formal_fallacies": 2,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3,
    "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 6,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "sports_understanding": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3,
    "web_of_lies": 2,
}
MUSR_CHOICES = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}


@dataclass(frozen=True)
class Component:
    """One number that goes into a part: a task's or group's metric and the score of guessing."""

    task: str
    metric: str
    chance: float = 0.0


@dataclass(frozen=True)
class Part:
    """One benchmark of a leaderboard.

    Attributes:
        name: as the leaderboard's column is called.
        task: what lm-eval runs.
        num_fewshot: examples before each question; None: as lm-eval's YAML has it.
        components: its score is the plain mean of these, each normalised.
    """

    name: str
    task: str
    num_fewshot: int | None
    components: tuple[Component, ...]


def _part(name: str, task: str, shots: int | None, metric: str, chance: float = 0.0) -> Part:
    return Part(name, task, shots, (Component(task, metric, chance),))


V1 = (
    _part("ARC", "arc_challenge", 25, "acc_norm,none"),
    _part("HellaSwag", "hellaswag", 10, "acc_norm,none"),
    _part("MMLU", "mmlu", 5, "acc,none"),
    _part("TruthfulQA", "truthfulqa_mc2", 0, "acc,none"),
    _part("Winogrande", "winogrande", 5, "acc,none"),
    _part("GSM8K", "gsm8k", 5, "exact_match,strict-match"),
)
V2 = (
    Part(
        "IFEval",
        "leaderboard_ifeval",
        None,
        tuple(Component("leaderboard_ifeval", f"{by}_level_strict_acc,none") for by in ("prompt", "inst")),
    ),
    Part(
        "BBH",
        "leaderboard_bbh",
        None,
        tuple(Component(f"leaderboard_bbh_{name}", "acc_norm,none", 1 / n) for name, n in BBH_CHOICES.items()),
    ),
    _part("MATH Lvl 5", "leaderboard_math_hard", None, "exact_match,none"),
    _part("GPQA", "leaderboard_gpqa", None, "acc_norm,none", 1 / 4),
    Part(
        "MuSR",
        "leaderboard_musr",
        None,
        tuple(Component(f"leaderboard_musr_{name}", "acc_norm,none", 1 / n) for name, n in MUSR_CHOICES.items()),
    ),
    _part("MMLU-Pro", "leaderboard_mmlu_pro", None, "acc,none", 1 / 10),
)
LEADERBOARDS = {"open_llm_leaderboard_v1": V1, "open_llm_leaderboard_v2": V2}
ALIASES = {"leaderboard_v1": "open_llm_leaderboard_v1", "leaderboard_v2": "open_llm_leaderboard_v2"}
AVERAGE = "average"


def normalised(value: float, chance: float) -> float:
    """Return a score between 0 (chance or below) and 1 (all right).

    >>> round(normalised(0.6, 0.25), 4)
    0.4667
    """
    return max(0.0, (value - chance) / (1.0 - chance))


def leaderboard_scores(
    name: str,
    results: Mapping[str, Mapping[str, float]],
    subtasks: Mapping[str, Sequence[str]],
    *,
    below_chance: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the score of each part and their average, between 0 and 1.

    Args:
        name: a key of ``LEADERBOARDS``.
        results: lm-eval's ``results``: task or group -> ``metric,filter`` -> value.
        subtasks: lm-eval's ``group_subtasks``.
        below_chance: whether a score below chance counts as negative; the leaderboard counts it as 0.

    Returns:
        (part -> score, with ``average`` if no part is missing; missing part -> the task without a score).
    """
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    for part in LEADERBOARDS[name]:
        found = [_component(component, name, results, subtasks, below_chance) for component in part.components]
        if any(value is None for value in found):
            absent = [c.task for c, value in zip(part.components, found, strict=True) if value is None]
            missing[part.name] = ", ".join(dict.fromkeys(absent))
        else:
            scores[part.name] = math.fsum(value for value in found if value is not None) / len(found)
    if not missing:
        scores[AVERAGE] = math.fsum(scores.values()) / len(scores)
    return scores, missing


def _component(
    component: Component,
    name: str,
    results: Mapping[str, Mapping[str, float]],
    subtasks: Mapping[str, Sequence[str]],
    below_chance: bool,
) -> float | None:
    # The first edition averaged MMLU's 57 subjects with equal weight; lm-eval weighs them by their size.
    if LEADERBOARDS[name] is V1 and component.task == "mmlu":
        values = [results.get(task, {}).get(component.metric) for task in leaves("mmlu", subtasks)]
        known = [value for value in values if isinstance(value, float | int)]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None
    value = results.get(component.task, {}).get(component.metric)
    if not isinstance(value, float | int) or math.isnan(value):
        return None
    if below_chance:
        return (float(value) - component.chance) / (1.0 - component.chance)
    return normalised(float(value), component.chance)


def departure(name: str, num_fewshot: int | None, limit: int | None, chat_template: bool) -> str:
    """Return a note on settings that are not the public leaderboard's; empty where there are none.

    Args:
        name: a key of ``LEADERBOARDS``.
        num_fewshot: examples asked for in place of each part's own number.
        limit: questions of each task, in place of all.
        chat_template: whether questions were asked through one. The second edition left that to who submitted.
    """
    other = [f"--num-fewshot {num_fewshot} (there each part has its own number)"] if num_fewshot is not None else []
    other += [f"--limit {limit} (there all questions count)"] if limit is not None else []
    other += ["--apply-chat-template (there none is used)"] if chat_template and LEADERBOARDS[name] is V1 else []
    return f"{name}: not comparable with the public leaderboard: {', '.join(other)}" if other else ""


def leaves(group: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks below a group, in order; a task is its own leaf."""
    if group not in subtasks:
        return [group]
    return [leaf for child in subtasks[group] for leaf in leaves(child, subtasks)]
