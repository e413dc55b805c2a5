"""The paper's questions as studies: for each the question, what the paper found, and the space that asks it again.

Numbers are of arXiv 2412.13337, mostly Granite 7B on 825,487 samples with one seed; docs/presets.md shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sengi.errors import RecipeError
from sengi.presets.evidence import Confidence
from sengi.recipe import Recipe
from sengi.recipe_sources import nearest
from sengi.study.dimensions import Space
from sengi.train.advice import named_family

EPOCHS = 6  # of a study's budget
EPOCHS_REASON = "the paper trained 10 and its stacked runs were at their best after 4.5 (MMLU) and 5.3 (MT-Bench)"
BATCHES = (128, 3840, 7680)
# The rates of the paper (main text), cut to what its appendix A.5.5 and A.5.8 tried, or to the ones around its best
RATES = {
    "granite": [5e-6, 2e-5, 4e-5, 8e-5],
    "mistral": [1e-6, 5e-6, 2e-5],
    "": [1e-6, 5e-6, 2e-5, 8e-5],
}
LORA_FACTOR = 10  # rate of LoRA over that of full fine-tuning (recipe.py has the sources)
LENGTH_PHASES = {"by": "response_length", "at": 0.5, "replay": 0.01}  # appendix A.5.1


@dataclass(frozen=True)
class StudyPreset:
    """One question.

    Attributes:
        question: as people ask it.
        answer: the paper's, with its numbers.
        source: where the paper says so; ``confidence`` how sure that is.
        stages: the space that asks it, of a recipe and the name of its family (:func:`family`); several are asked one
            after another.
        note: what to know before reading the result; may be empty.
    """

    question: str
    answer: str
    source: str
    confidence: Confidence
    stages: Callable[[Recipe, str], dict[str, Space]]
    note: str = ""


def family(model: str, model_type: str) -> str:
    """The family whose rates the paper searched: ``granite``, ``mistral`` or, for all others, empty.

    Args:
        model: ``model_name_or_path`` of the recipe.
        model_type: of the model's config. A Granite 7B calls itself ``llama`` there, hence the name comes first.
    """
    return named_family(model, filter(None, RATES)) or (model_type if model_type in RATES else "")


def rates(recipe: Recipe, kin: str) -> list[float]:
    """The rates to compare for a recipe: the paper's for its family, times ten for LoRA."""
    factor = LORA_FACTOR if recipe.use_peft else 1
    return [_times(rate, factor) for rate in RATES[kin]]


def _times(rate: float, factor: int) -> float:
    return float(f"{rate * factor:.6g}")  # 2e-5 x 10 is 2e-4, and not 0.00020000000000000001


def _batch_size(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {"batch-size": {"effective_batch_size": list(BATCHES)}}


def _learning_rate(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {"learning-rate": {"learning_rate": rates(recipe, kin)}}


def _warmup(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {"warmup": {"warmup_steps": [0, 25, 100]}}


def _schedule(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {"schedule": {"lr_scheduler_type": ["constant", "cosine", "linear"]}}


def _strategy(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {"stacked-vs-phased": {"strategy": ["stacked", "phased"]}}


def _configurations(recipe: Recipe, kin: str) -> dict[str, Space]:
    if recipe.use_peft:
        raise RecipeError("lab-vs-tulu compares recipes of full fine-tuning, but use_peft is true; remove it")
    return {"lab-vs-tulu": {"preset": [f"lab-{kin}" if kin else "lab", "tulu"]}}


def _methods(recipe: Recipe, kin: str) -> dict[str, Space]:
    full = [{"use_peft": False, "learning_rate": rate} for rate in RATES[kin]]
    lora = [{"use_peft": True, "learning_rate": _times(rate, LORA_FACTOR)} for rate in RATES[kin]]
    names = [f"{'lora' if values['use_peft'] else 'full'}-{values['learning_rate']:.0e}" for values in full + lora]
    return {"full-vs-lora": {"method": dict(zip(names, full + lora, strict=True))}}


def _first_three(recipe: Recipe, kin: str) -> dict[str, Space]:
    return {**_batch_size(recipe, kin), **_learning_rate(recipe, kin), **_strategy(recipe, kin)}


PRESETS: dict[str, StudyPreset] = {
    "batch-size": StudyPreset(
        "Does a larger batch end better, at the same rate and the same samples?",
        "yes: 128, 3,840 and 7,680 samples a step reached MMLU 0.516, 0.526 and 0.529, MT-Bench 6.406, 6.768 and "
        "6.831; small batches are ahead early",
        "appendix A.5.5; the numbers by a summary of the paper",
        "high",
        _batch_size,
    ),
    "learning-rate": StudyPreset(
        "Which learning rate?",
        "a low one: 2e-5 for Granite (of 2e-5 to 1e-4), 1e-6 for Mistral (of 1e-6, 5e-6, 2e-5); start there and try "
        "slightly lower and higher; a larger batch does not call for a larger rate",
        "main text, appendix A.5.5 and A.5.8",
        "high",
        _learning_rate,
    ),
    "warmup": StudyPreset(
        "Does warm-up help?",
        "no: 0, 25 and 100 steps reached MMLU 0.531, 0.528 and 0.526, and nearly equal MT-Bench",
        "main text; the numbers by a summary of the paper",
        "high",
        _warmup,
        "steps keep their meaning on smaller data only with a batch that --scale made",
    ),
    "schedule": StudyPreset(
        "Constant rate, or one that falls?",
        "no difference: constant reached MMLU 0.5242 and MT-Bench 6.7562, cosine 0.5251 and 6.6813; linear was not "
        "compared",
        "main text; MMLU confirmed by a review of the paper",
        "high",
        _schedule,
    ),
    "stacked-vs-phased": StudyPreset(
        "All data at once, or one phase after another?",
        "no significant difference: stacked MMLU 0.53, MT-Bench 6.77, GSM8K 0.39, phased 0.52, 6.76, 0.37; stacked was "
        "there after 3.7 to 4.4 million samples, phased after 7.9 to 8.1",
        "appendix A.5.1, table 2",
        "high",
        _strategy,
        "both see budget_samples in all; a phased run shares them out over its phases",
    ),
    "lab-vs-tulu": StudyPreset(
        "Large batch at a constant rate (LAB), or small batch with warm-up and decay (TULU)?",
        "LAB on Llama 3.2 3B: MMLU 0.57 against 0.55, GSM8K 0.51 against 0.49, ARC 0.78 against 0.74, MT-Bench 5.00 "
        "against 4.97; its best checkpoints took 0.3 to 6.3 times the samples of TULU's",
        "appendix A.5.8, table 13",
        "high",
        _configurations,
        "here both see the same samples, in the paper each was trained and judged at its own length",
    ),
    "full-vs-lora": StudyPreset(
        "Do early loss and gradient norm tell the good runs from the bad under LoRA, too, and what does LoRA cost?",
        "not studied: open question 2 of the paper, which is about full fine-tuning; elsewhere LoRA was best at ten "
        "times the rate of full fine-tuning and lost more by large batches",
        "limitations of the paper; LoRA Without Regret (Thinking Machines, 2025)",
        "low",
        _methods,
        "each method at several rates; the judge compares runs of one method only, since the norms are of different "
        "parameters",
    ),
    "first-three": StudyPreset(
        "What should be tried first? Batch size, then the rate at the best batch, then stacked or phased with both.",
        "a larger batch ends better (0.516 to 0.529 on MMLU), the lowest rate of the best batch is on par or better, "
        "stacked equals phased with half the samples",
        "appendix A.5.1 and A.5.5",
        "high",
        _first_three,
        "each stage starts from the best settings so far",
    ),
}


def check_preset(name: str, place: str = "") -> StudyPreset:
    """The study preset of this name.

    Args:
        place: file and line it was read at, for the message.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in PRESETS:
        where = f"{place}: " if place else ""
        raise RecipeError(
            f"{where}there is no study preset '{name}'{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}"
        )
    return PRESETS[name]
