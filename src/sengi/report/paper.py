"""What the paper did, value by value, with where it is said and how sure that is.

The paper is arXiv 2412.13337, "Unveiling the Secret Recipe: A Guide For Supervised Fine-Tuning Small LLMs". Where
it is silent, the value is that of the authors' training code (github.com/instructlab/training, late 2024), which
the paper names as the code behind its results; that is no proof of what each run used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

PAPER = "arXiv 2412.13337"
CODE = "instructlab/training, the authors' code"


@dataclass(frozen=True, slots=True)
class PaperValue:
    """One setting of the paper.

    Attributes:
        key: the recipe's key.
        value: the paper's value in words.
        same: whether a recipe's value is the paper's.
        source: paper section or code file.
        sure: how sure it is that the paper's runs used it.
        note: what to know before following it; may be empty.
    """

    key: str
    value: str
    same: Callable[[Any], bool]
    source: str
    sure: Literal["high", "medium", "low"]
    note: str = ""


def equals(*values: Any) -> Callable[[Any], bool]:
    """True for any of ``values``; numbers compare as numbers, a boolean is no number."""
    return lambda given: not isinstance(given, bool) and given in values


def within(low: float, high: float) -> Callable[[Any], bool]:
    """True for a number from ``low`` to ``high``."""
    return lambda given: isinstance(given, (int, float)) and not isinstance(given, bool) and low <= given <= high


def paper_values(model: str) -> list[PaperValue]:
    """The paper's settings; the learning rate is the one for the model's family.

    Args:
        model: ``model_name_or_path`` of the recipe.
    """
    return [*_main_settings(), _learning_rate(model), *_schedule_settings(), *_code_settings()]


def _learning_rate(model: str) -> PaperValue:
    quote = f"{PAPER}, main text (learning rate) and appendix A.5.5, A.5.8"
    note = "start here, then test slightly higher and lower; a larger batch does not call for a larger rate"
    if "mistral" in model.lower():
        return PaperValue("learning_rate", "1e-6 (Mistral)", equals(1e-6), quote, "high", note)
    if "granite" in model.lower():
        return PaperValue("learning_rate", "2e-5 (Granite)", equals(2e-5), quote, "high", note)
    value = "2e-5 (Granite), 1e-6 (Mistral)"
    return PaperValue("learning_rate", value, equals(2e-5, 1e-6), quote, "high", f"other model family: {note}")


def _main_settings() -> list[PaperValue]:
    return [
        PaperValue(
            "effective_batch_size",
            "3,840 to 7,680 samples",
            within(3840, 7680),
            f"{PAPER}, appendix A.5.5 (128, 3,840 and 7,680 compared)",
            "high",
            "larger batches ended higher and took more samples to get there",
        ),
        PaperValue(
            "strategy",
            "stacked",
            equals("stacked"),
            f"{PAPER}, appendix A.5.1",
            "high",
            "better than or equal to phased; differences of 0.01 on MMLU and MT-Bench, one seed",
        ),
    ]


def _schedule_settings() -> list[PaperValue]:
    return [
        PaperValue(
            "lr_scheduler_type",
            "constant",
            equals("constant"),
            f"{PAPER}, main text and appendix A.5.8",
            "high",
            "cosine scored the same within noise",
        ),
        PaperValue(
            "warmup_steps",
            "0",
            equals(0),
            f"{PAPER}, main text (0, 25 and 100 steps compared)",
            "high",
            "the LAB configuration itself had 25 steps; leaving them out cost nothing",
        ),
        PaperValue(
            "num_train_epochs",
            "10 (LAB)",
            equals(10),
            f"{PAPER}, LAB configuration, as a secondary summary of the paper gives it",
            "medium",
            "each benchmark reports its own best checkpoint, often around epoch 5",
        ),
    ]


def _code_settings() -> list[PaperValue]:
    summary = f"{PAPER}, optimizer, as a secondary summary gives it; equal in {CODE}, main_ds.py"
    code = f"{CODE}, main_ds.py"
    return [
        PaperValue("adam_beta1", "0.9", equals(0.9), summary, "medium"),
        PaperValue("adam_beta2", "0.95", equals(0.95), summary, "medium"),
        PaperValue("weight_decay", "0", equals(0), code, "medium"),
        PaperValue("max_grad_norm", "1.0", equals(1), code, "medium"),
        PaperValue(
            "max_length", "4,096", equals(4096), f"{CODE}, README", "low", "the value of each run is not stated"
        ),
        PaperValue("overlong", "drop", equals("drop"), f"{CODE}, data_process.py", "medium"),
        PaperValue(
            "loss_reduction",
            "token",
            equals("token"),
            f"{CODE}, main_ds.py",
            "medium",
            "there a mean over each micro-batch; here over the whole step",
        ),
        PaperValue("dtype", "bfloat16 over float32 weights", equals("bfloat16"), code, "medium"),
        PaperValue("seed", "42", equals(42), code, "low", "the paper states one seed, not which"),
        PaperValue(
            "save_samples",
            "about 250,000",
            equals(250_000),
            f"{PAPER}, deduced from the sample counts of Tables 10-13",
            "medium",
        ),
    ]
