"""What the evidence says about a recipe on its data: a pure function of the recipe and the plan.

The evidence is that of the presets (sengi/presets: each value with its source and how sure that is): arXiv 2412.13337,
full fine-tuning of models of 3B to 7B on 825,487 samples. For adapters and for models of other sizes everything is one
step less sure. An advice without a suggestion says what is known and that nothing speaks for another value.

Steps. The paper's runs of ten epochs took 2,150 optimizer steps at 3,840 samples a step and 1,075 at 7,680; Granite's
best scores at 3,840 came at steps 961 (MMLU) and 1,143 (MT-Bench). So FEWEST_STEPS is the shortest run that the
evidence for large batches covers, and STEPS the length that a suggested batch leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from sengi.data.phases import epochs_seen
from sengi.presets.evidence import CONFIDENCES, Confidence, PresetValue, preset_values
from sengi.recipe import PAPER, REGRET, Recipe
from sengi.statistics.gradient_noise import NoiseScale

STEPS, FEWEST_STEPS = 2150, 1075  # ten epochs of 825,487 samples at 3,840 and at 7,680
FEWEST_STEPS_OF_A_PHASE = 20  # fewer are a warning of the plan
SMALLEST_BATCH = 8  # that is suggested: the paper's smallest was 128, and fewer than a handful are mostly noise
LARGE_BATCH = 3840  # from here on the paper's batches ended higher than 128
HIGHEST_RATE = 1e-4  # that the paper tried
FAR = 2.0  # times the best rate of a family: the paper's next rates above and below did worse
LONG_WARMUP = 0.1  # share of a phase's steps; the paper's longest, 100 steps, was 5% of ten epochs at 3,840
PAPER_SIZES = 2e9, 9e9  # parameters: 3B and 7B, and what rounds to them
FAMILIES = {"granite": "lab-granite", "mistral": "lab-mistral", "llama": "lab-llama"}  # preset of a model's family
FAMILY_RATES = ("granite", "mistral")  # families whose rates the paper compared


@dataclass(frozen=True)
class Advice:
    """One line of advice.

    Attributes:
        key: of the recipe, or ``steps``.
        value: as the recipe has it, in words.
        suggestion: a value that the evidence speaks for, or empty.
        reason: what the value means here, and why another one.
        source: where the evidence is.
        confidence: how sure it is for this model and method.
        phase: that it is about; empty in a stacked run.
    """

    key: str
    value: str
    suggestion: str
    reason: str
    source: str
    confidence: Confidence
    phase: str = ""


def advise(recipe: Recipe, plan: Mapping[str, Any]) -> list[Advice]:
    """Advice on the notable values, in the order of the plan; those of each phase in a phased run.

    Args:
        recipe: of the run.
        plan: of the run, as plan.json keeps it.
    """
    evidence = _evidence(family_preset(recipe.model_name_or_path))
    phases = plan["phases"]
    whole = sum(int(phase["samples"]) / int(phase["effective_batch_size"]) for phase in phases)  # of full steps
    found: list[Advice] = []
    for number, phase in enumerate(phases):
        name = str(phase["name"]) if len(phases) > 1 else ""
        lines = (
            _batch(recipe, phase, int(plan["steps"]), whole, evidence),
            _rate(recipe, phase, int(plan["parameters"]), evidence),
            _schedule(phase, number + 1 < len(phases), evidence),
            _warmup(phase, evidence),
            _epochs(phase, evidence),
        )
        found += [_line(values, name, _sure(values[-1], recipe, plan)) for values in lines]
    if not (recipe.eval_data or recipe.eval_questions or recipe.eval_tasks):
        found.append(_nothing_held_out())
    return found


def family_preset(model: str) -> str:
    """The preset whose evidence is nearest to a model, by its name; ``lab`` for families that the paper has not."""
    return FAMILIES.get(named_family(model, FAMILIES), "lab")


def named_family(model: str, families: Iterable[str]) -> str:
    """The first of ``families`` in a model's name, or empty: only the last part of a path names the model.

    >>> named_family("/data/mistral-experiments/qwen3-4b", ["granite", "mistral"])
    ''
    """
    name = PurePath(model).name.lower()
    return next((family for family in families if family in name), "")


@cache
def _evidence(preset: str) -> Mapping[str, PresetValue]:
    return {value.key: value for value in preset_values(preset)}


Values = tuple[str, str, str, str, str, Confidence]


def _line(values: Values, phase: str, sure: Confidence) -> Advice:
    key, value, suggestion, reason, source, _ = values
    return Advice(key, value, suggestion, reason, source, sure, phase)


def _sure(confidence: Confidence, recipe: Recipe, plan: Mapping[str, Any]) -> Confidence:
    """One step less where the evidence is of another method or another size."""
    if not less_sure(recipe, plan):
        return confidence
    return CONFIDENCES[min(CONFIDENCES.index(confidence) + 1, len(CONFIDENCES) - 1)]


def less_sure(recipe: Recipe, plan: Mapping[str, Any]) -> str:
    """Why all confidence is one step lower than the sources have it; empty where it is not."""
    size = float(plan["parameters"])
    if recipe.use_peft:
        return "the evidence is of full fine-tuning, not of adapters"
    if not PAPER_SIZES[0] <= size <= PAPER_SIZES[1]:
        count = f"{size / 1e9:.3g}B" if size >= 1e9 else f"{size / 1e6:.3g}M"
        return f"the evidence is of models of 3B to 7B, and this one has {count} parameters"
    return ""


def _batch(
    recipe: Recipe, phase: Mapping[str, Any], steps: int, whole: float, evidence: Mapping[str, PresetValue]
) -> Values:
    batch, known = int(phase["effective_batch_size"]), evidence["effective_batch_size"]
    taken = f"{steps:,} optimizer steps in all, {int(phase['epoch_samples']) / batch:,.0f} an epoch"
    own = int(phase["last_step"]) - int(phase["first_step"]) + 1
    kept = round(batch * whole / STEPS)  # leads to STEPS
    suggestion, reason = "", f"{taken}; the paper's runs took {FEWEST_STEPS:,} and more"
    if steps < FEWEST_STEPS:
        reason = f"{taken}: too few; the paper's shortest run took {FEWEST_STEPS:,}, its run at 3,840 took {STEPS:,}"
        kept = max(SMALLEST_BATCH, kept)
        if kept < batch:
            suggestion, reason = f"{kept:,}", f"{reason}, and {kept:,} a step would take {steps * batch // kept:,}"
        else:
            reason += "; more data or epochs would help, a smaller batch does not"
    elif recipe.use_peft:
        reason = f"{taken}; LoRA loses more than full fine-tuning by large batches, at any rank"
        return "effective_batch_size", f"{batch:,}", "", reason, REGRET, "medium"
    elif batch < LARGE_BATCH and kept >= FAR * batch and own >= FEWEST_STEPS_OF_A_PHASE:
        larger = min(kept, LARGE_BATCH)
        suggestion = f"{larger:,}"
        reason = (
            f"{taken}: enough for a larger batch, which ended higher in the paper; {larger:,} leaves {STEPS:,} or more"
        )
    return "effective_batch_size", f"{batch:,}", suggestion, reason, _source(known), known.confidence


def _rate(recipe: Recipe, phase: Mapping[str, Any], size: int, evidence: Mapping[str, PresetValue]) -> Values:
    rate, known = float(phase["learning_rate"]), evidence["learning_rate"]
    if recipe.use_peft:
        reason = f"LoRA's best rate is about ten times that of full fine-tuning, {known.text} in the paper"
        return "learning_rate", f"{rate:g}", "", reason, REGRET, "medium"
    best = float(known.value)
    suggestion = ""
    if named_family(recipe.model_name_or_path, FAMILY_RATES):
        reason = f"{best:g} was best for this family; a larger batch does not call for a larger rate"
        suggestion = f"{best:g}" if not best / FAR <= rate <= best * FAR else ""
    else:
        reason = (
            "the paper did not search this family's rate: 2e-5 was best for Granite, 1e-6 for Mistral; try a few "
            "('sengi study'), the lowest that still learns tends to end highest"
        )
        if rate > HIGHEST_RATE and size >= PAPER_SIZES[0]:
            suggestion, reason = f"{best:g}", f"above the highest rate that the paper tried, {HIGHEST_RATE:g}; {reason}"
    return "learning_rate", f"{rate:g}", suggestion, reason, _source(known), known.confidence


def _schedule(phase: Mapping[str, Any], another_follows: bool, evidence: Mapping[str, PresetValue]) -> Values:
    kind, known = str(phase["lr_scheduler_type"]), evidence["lr_scheduler_type"]
    if kind == "constant":
        reason = "scores as a decay does, and a run can be ended or extended anywhere"
        return "lr_scheduler_type", kind, "", reason, _source(known), known.confidence
    if another_follows:
        reason = "a rate that has decayed to 0 before the next phase made later phases unstable"
        return "lr_scheduler_type", kind, "constant", reason, "LAB, arXiv 2403.01081", "medium"
    reason = "scores as a constant rate does; checkpoints before the planned end are not comparable with it"
    return "lr_scheduler_type", kind, "", reason, _source(known), known.confidence


def _warmup(phase: Mapping[str, Any], evidence: Mapping[str, PresetValue]) -> Values:
    steps, known = int(phase["warmup_steps"]), evidence["warmup_steps"]
    own = int(phase["last_step"]) - int(phase["first_step"]) + 1
    value = f"{steps:,} steps" if steps else "0"
    reason, suggestion = "leaving it out cost nothing" if not steps else "neither helps nor hurts", ""
    if steps >= own:
        reason, suggestion = f"the rate never reaches its peak in {own:,} steps", "0"
    elif steps > LONG_WARMUP * own:
        reason, suggestion = f"{steps / own:.0%} of the steps are spent below the rate that was chosen", "0"
    return "warmup_steps", value, suggestion, reason, _source(known), known.confidence


def _epochs(phase: Mapping[str, Any], evidence: Mapping[str, PresetValue]) -> Values:
    epochs, known = epochs_seen(phase), evidence["num_train_epochs"]
    longest = int(known.value)
    reason, suggestion = (
        "the paper's best scores came after 4.5 to 5.3 epochs of Granite: keep checkpoints on the way",
        "",
    )
    if epochs > longest:
        reason, suggestion = f"longer than any run that the paper compares; {reason}", str(longest)
    return "num_train_epochs", str(epochs), suggestion, reason, _source(known), known.confidence


def _nothing_held_out() -> Advice:
    reason = "nothing is scored on the way, so that neither the best checkpoint nor overfitting would show"
    source = f"{PAPER}, tables 10 to 13: best checkpoints come anywhere between the first and the last"
    return Advice("eval_data", "none", "held-out conversations, or eval_tasks", reason, source, "high")


def _source(known: PresetValue) -> str:
    return f"{PAPER}, {known.source}"


def explain_probe(scale: NoiseScale, batches: Sequence[int]) -> list[str]:
    """The measured noise scale in words.

    Args:
        scale: :func:`sengi.train.probe.probe`.
        batches: ``effective_batch_size`` of each phase.
    """
    low, high = (_samples(end) for end in (scale.low, scale.high))
    value = _samples(scale.critical_batch)
    lines = [
        f"critical batch size {value} samples, 95% interval {low} to {high}, from {scale.micro_batches} micro-batches "
        f"of {scale.samples_each} random samples at the base model's weights (McCandlish et al. 2018)"
    ]
    if scale.high == float("inf"):
        lines.append("the gradient was not seen clearly above its noise: a larger --probe narrows the interval")
    for batch in dict.fromkeys(batches):
        lines.append(_compared(scale, batch))
    lines.append("it usually grows while a model trains, and Adam's scaling is not in it: read it as a power of ten")
    return lines


def _compared(scale: NoiseScale, batch: int) -> str:
    name = f"effective_batch_size {batch:,} is"
    if scale.critical_batch in (0.0, float("inf")):
        return f"{name} not comparable with it" if scale.critical_batch else f"{name} above it: all samples agree"
    progress, samples = 1 / (1 + scale.critical_batch / batch), 1 + batch / scale.critical_batch
    numbers = (
        f"a step makes about {progress:.0%} of the progress of a noiseless one, and a given progress takes "
        f"{samples:.1f} times the fewest possible samples"
    )
    if batch > scale.high:
        return (
            f"{name} above it: {numbers}. In the paper batches of 3,840 to 7,680 took more samples as well, and ended "
            "higher all the same (appendix A.5.5): it is a choice of the end, not of speed"
        )
    if batch < scale.low:
        return f"{name} below it: {numbers}. A batch twice as large costs few samples more and takes half the steps"
    return f"{name} about at it, within the interval: {numbers}"


def _samples(value: float) -> str:
    if value == float("inf"):
        return "infinite"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
