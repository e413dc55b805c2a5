"""The recipe: everything a user can ask of a run, in one schema.

The sentence under a field is its documentation everywhere (``sengi recipe schema``, the reference page, error
messages); ``reason`` says why the default is what it is. Where the values come from is in recipe_sources.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

PAPER = "arXiv 2412.13337"


def _field(default: Any, reason: str, **checks: Any) -> Any:
    """A pydantic field whose default carries the reason for it."""
    return Field(default, json_schema_extra={"reason": reason}, **checks)


class _Strict(BaseModel):
    """Unknown keys are errors, values never change after validation, docstrings are the documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        asked = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and asked is not bool:  # pydantic would read true as the number 1
            raise ValueError("this key takes no true or false")
        return value


class DataEntry(_Strict):
    """One training file, folder or hub dataset."""

    path: str
    """File, folder or hub dataset id (``org/name``)."""
    phase: str = ""
    """Name of the part of the data this belongs to, for example ``knowledge``; empty means the file's own
    ``phase`` column, else none."""
    weight: float = _field(1.0, "every sample once an epoch", gt=0, le=1000)
    """Times an epoch each sample is seen; a fraction takes a seeded share, another one each epoch."""


class Recipe(_Strict):
    """One supervised fine-tuning run."""

    model_name_or_path: str = Field(min_length=1)
    """Local folder of safetensors, hub id, GGUF file, or ``smollm2-135m``."""
    data: Annotated[list[DataEntry], Field(min_length=1)]
    """Training data; all entries are stacked and shuffled together."""
    output_dir: str = Field(min_length=1)
    """Run folder: recipe, dynamics, checkpoints and report go here; a second call continues the run in it."""
    preset: str | None = _field(None, "no preset: the defaults below are the paper's")
    """Named set of values below this recipe's own (see ``sengi recipe show``)."""

    effective_batch_size: int = _field(3840, f"{PAPER}: 3,840-7,680 ends above 128 on MMLU and MT-Bench", ge=1)
    """Samples (conversations) in one optimizer step, exactly, on any number of devices."""
    learning_rate: float = _field(2e-5, f"{PAPER}: best for Granite; 1e-6 was best for Mistral", gt=0, le=1)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = _field(
        "constant", f"{PAPER}: constant equals cosine within noise and needs no planned end"
    )
    """Shape of the rate after warm-up; cosine and linear fall to 0, reached one step after the last."""
    warmup_steps: float = _field(0, f"{PAPER}: 0, 25 and 100 warm-up steps scored alike", ge=0)
    """Optimizer steps over which the rate rises linearly from 0; below 1 it is a share of all steps."""
    num_train_epochs: int = _field(10, f"{PAPER}: the LAB configuration", ge=1, le=10_000)
    """Times the data is seen."""
    max_steps: int | None = _field(None, "the epochs decide", ge=1)
    """Optimizer steps after which the run ends, if earlier than the epochs."""

    max_length: int = _field(4096, f"{PAPER}: the authors' training code", ge=8)
    """Tokens a sample may have."""
    overlong: Literal["drop", "truncate", "error"] = _field(
        "drop", "a cut sample loses its closing token and teaches the model not to stop"
    )
    """What happens to samples above max_length; each is counted and listed."""
    max_tokens_per_device: int | Literal["auto"] = _field("auto", "set from the memory of the device")
    """Tokens in one micro-batch on one device; changes speed and memory, never the result."""
    loss_reduction: Literal["token", "sample"] = _field(
        "token", "every supervised token of the step counts the same, as in the authors' code"
    )
    """``token``: mean over the step's supervised tokens; ``sample``: mean over samples of their token means."""

    dtype: Literal["auto", "float32", "bfloat16"] = _field(
        "auto", "bfloat16 where the hardware has it; weights and optimizer stay float32"
    )
    """Precision of the forward and backward computation; master weights are float32 in every case."""
    weight_decay: float = _field(0.0, f"{PAPER}: the authors' optimizer", ge=0, le=1)
    """Decoupled weight decay, on matrices only (not on norms and biases)."""
    adam_beta1: float = _field(0.9, f"{PAPER}", ge=0, lt=1)
    """Decay of AdamW's first moment."""
    adam_beta2: float = _field(0.95, f"{PAPER}", ge=0, lt=1)
    """Decay of AdamW's second moment."""
    adam_epsilon: float = _field(1e-8, "PyTorch's default, as in the authors' code", gt=0)
    """AdamW's denominator floor."""
    max_grad_norm: float = _field(1.0, f"{PAPER}: the authors' code", ge=0)
    """Global gradient norm above which gradients are scaled down; 0 turns clipping off. The norm before
    clipping is logged at every step."""
    seed: int = _field(42, "the authors' default", ge=0, lt=2**32)
    """Decides the order of the data, and all else that is random."""

    save_steps: int | None = _field(None, "save_samples decides", ge=1)
    """Optimizer steps between checkpoints."""
    save_samples: int | None = _field(250_000, f"{PAPER}: checkpoints about every 250,000 samples", ge=1)
    """Samples between checkpoints; ignored where save_steps is given. The last step is always saved."""
    save_total_limit: int | None = _field(3, "room for the newest and two to fall back to", ge=1)
    """Checkpoints kept; older ones are removed after a newer one is safe on disk."""

    eval_data: list[DataEntry] = Field(default_factory=list)
    """Held-out conversations: their loss is reported by source and phase."""
    eval_questions: list[str] = Field(default_factory=list)
    """Question files (``question, choices, answer`` or ``question, answer``) scored before and after."""
    eval_tasks: list[str] = Field(default_factory=list)
    """Benchmarks scored before, during and after training, as ``sengi eval --tasks`` names them: lm-eval's tasks and
    groups, ``questions:FILE``, ``heldout:FILE``. What is scored is a checkpoint on disk, loaded as users load it: at
    each evaluation point one is saved, and it counts in save_total_limit."""
    eval_steps: int | None = _field(None, "eval_samples decides", ge=1)
    """Optimizer steps between evaluation points, at which held-out loss (eval_data) and eval_tasks are scored."""
    eval_samples: int | None = _field(250_000, f"{PAPER}: scores about every 250,000 samples", ge=1)
    """Samples between evaluation points; ignored where eval_steps is given. Before the first step and after the last
    there is always one; with both keys null those two are the only ones."""
    eval_limit: int | None = _field(None, "a part of a benchmark is another benchmark", ge=1)
    """Questions asked of each of eval_tasks, the first ones."""
    eval_num_fewshot: int | None = _field(None, "each task's own number", ge=0)
    """Examples before each question of a benchmark in eval_tasks."""
    eval_data_root: str | None = _field(None, "lm-eval asks the hub")
    """Folder of local benchmark files for eval_tasks (docs/benchmarks.md)."""
    eval_apply_chat_template: bool = _field(False, "as the published scores were made")
    """Whether benchmarks in eval_tasks are asked through the model's chat template."""
    eval_process: Literal["same", "second"] = _field("same", "scores and training share no memory and no cores")
    """``same``: training waits while eval_tasks are scored; ``second``: a second process with fewer threads scores
    them while training goes on, with a copy of the model in memory beside it. Neither changes the training."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that follow dynamics.jsonl; a failing tracker never stops a run."""

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        budget = self.max_tokens_per_device
        if isinstance(budget, int) and budget < 8:
            raise ValueError(f"max_tokens_per_device is {budget}, but a micro-batch needs at least 8 tokens; raise it")
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps}: give whole steps, or a share below 1")
        return self

    def warmup_count(self, total_steps: int) -> int:
        """Warm-up in optimizer steps for a run of ``total_steps``; a share is rounded up, as transformers does."""
        return math.ceil(self.warmup_steps * total_steps) if self.warmup_steps < 1 else int(self.warmup_steps)


def field_names() -> list[str]:
    """Recipe keys in the order of the schema."""
    return list(Recipe.model_fields)


def default_reason(key: str) -> str:
    """Why the default of ``key`` is what it is; empty for keys without a stated reason."""
    extra = Recipe.model_fields[key].json_schema_extra
    return str(extra.get("reason", "")) if isinstance(extra, dict) else ""


def description(key: str) -> str:
    """The sentence that documents ``key``."""
    return " ".join((Recipe.model_fields[key].description or "").split())
