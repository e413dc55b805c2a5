"""The recipe: everything a user can ask of a run, in one schema.

The sentence under a field is its documentation everywhere (``sengi recipe schema``, the reference page, error
messages); ``reason`` says why the default is what it is. Where the values come from is in recipe_sources.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from sengi.recipe_parts import PAPER, Phases, Scheduler, Strict, check_warmup
from sengi.recipe_parts import setting as _field

# Schulman and Thinking Machines Lab, "LoRA Without Regret", 2025: over 14 Llama and Qwen models the best rate of LoRA
# was 9.8 times that of full fine-tuning; Biderman et al., arXiv 2405.09673, figure S1, found the same factor
REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
LORA_LEARNING_RATE = 2e-4  # ten times the default of full fine-tuning
LORA_KEYS = ("load_in_4bit", "lora_r", "lora_alpha", "lora_target_modules")  # mean nothing without use_peft


class DataEntry(Strict):
    """One training file, folder or hub dataset."""

    path: str
    """File, folder or hub dataset id (``org/name``)."""
    phase: str = ""
    """Name of the part of the data this belongs to, for example ``knowledge``; empty means the file's own
    ``phase`` column, else none."""
    weight: float = _field(1.0, "every sample once an epoch", gt=0, le=1000)
    """Times an epoch each sample is seen; a fraction takes a seeded share, another one each epoch."""


class Recipe(Strict):
    """One supervised fine-tuning run."""

    model_name_or_path: str = Field(min_length=1)
    """Local folder of safetensors, hub id, GGUF file, or ``smollm2-135m``."""
    data: Annotated[list[DataEntry], Field(min_length=1)]
    """Training data; its entries are shuffled together, unless strategy is phased."""
    output_dir: str = Field(min_length=1)
    """Run folder: recipe, dynamics, checkpoints and report go here; a second call continues the run in it."""
    preset: str | None = _field(None, "no preset: the defaults below are the paper's")
    """Named set of values below this recipe's own (see ``sengi recipe show``)."""

    effective_batch_size: int = _field(3840, f"{PAPER}: 3,840-7,680 ends above 128 on MMLU and MT-Bench", ge=1)
    """Samples (conversations) in one optimizer step, exactly, on any number of devices."""
    learning_rate: float = _field(2e-5, f"{PAPER}: best for Granite; 1e-6 was best for Mistral", gt=0, le=1)
    """Peak learning rate of AdamW; with use_peft the default is 2e-4."""
    lr_scheduler_type: Scheduler = _field(
        "constant", f"{PAPER}: constant equals cosine within noise and needs no planned end"
    )
    """Shape of the rate after warm-up; cosine and linear fall to 0, reached one step after the last."""
    warmup_steps: float = _field(0, f"{PAPER}: 0, 25 and 100 warm-up steps scored alike", ge=0)
    """Optimizer steps over which the rate rises linearly from 0; below 1 it is a share of all steps."""
    num_train_epochs: int = _field(10, f"{PAPER}: the LAB configuration", ge=1, le=10_000)
    """Times the data is seen; in a phased run, each phase's own data."""
    max_steps: int | None = _field(None, "the epochs decide", ge=1)
    """Optimizer steps after which the run ends, if earlier than the epochs. Phases are all shortened alike."""
    strategy: Literal["stacked", "phased"] = _field(
        "stacked", f"{PAPER}: as good as phased or better, without checkpoints to choose between phases"
    )
    """``stacked``: all data is shuffled together; ``phased``: one phase after another, as ``phases`` says
    (docs/phases.md)."""
    phases: Phases | None = _field(None, "used by strategy: phased alone; then by the phase of the data")
    """Which samples make which phase, and how one follows another: ``by``, ``at``, ``order``, ``replay``, ``select``,
    ``optimizer``, ``settings``."""

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
    gradient_checkpointing: Literal["auto", "none", "selective", "full"] = _field(
        "auto", "the fastest whose memory forecast fits"
    )
    """What the layers compute again in the backward pass to save memory: nothing (``none``, or false), all but matrix
    products and attention (``selective``), or everything (``full``, or true). Never changes the result by a bit."""
    torch_compile: Literal["auto", True, False] = _field("auto", "where the training makes up for compiling")
    """Whether layers run as code that ``torch.compile`` makes at the start, in 10 to 60 s: faster steps, less memory.
    It rounds otherwise, so a run keeps what it began with; ``auto`` compiles on CPUs only, where it was measured."""
    fsdp_sharding_strategy: Literal["full_shard", "hybrid_shard"] = _field(
        "full_shard", "the least memory; hybrid pays where the network between machines is slow"
    )
    """Several processes: ``full_shard`` splits weights, gradients and moments over all of them; ``hybrid_shard`` over
    those of one machine, and each machine holds a copy. Changes speed and memory, never the result."""
    fsdp_reshard_after_forward: bool = _field(True, "the least memory; PyTorch's default")
    """Several processes: whether a layer's gathered weights are freed after the forward pass and gathered again for
    the backward pass; false keeps them, which takes the memory of the whole model and saves a third of the traffic."""
    fsdp_gradient_reduction: Literal["auto", "step", "micro_batch"] = _field(
        "auto", "step where whole float32 gradients take at most a quarter of the device's memory"
    )
    """Several processes: whether gradients cross the network once a step, which keeps whole gradients (4 bytes a
    parameter) on each device, or with each micro-batch."""

    optim: Literal["adamw_torch_fused", "adamw_anyprecision", "adamw_bnb_8bit"] = _field(
        "adamw_torch_fused", "float32 moments, the reference that the others are held against (docs/memory.md)"
    )
    """AdamW, by the precision of its two moments: float32 (``adamw_torch_fused``, 8 bytes a parameter), bfloat16
    (``adamw_anyprecision``, 4 bytes), or 8 bits in blocks (``adamw_bnb_8bit``, 2 bytes, by bitsandbytes, on one
    process)."""
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

    use_peft: bool = _field(False, f"{PAPER}: full fine-tuning; LoRA was not studied")
    """Whether a LoRA adapter is trained beside the frozen model in place of the model itself (docs/lora.md)."""
    load_in_4bit: bool = _field(False, "the frozen model as it is stored; 4 bits save memory and cost accuracy")
    """Whether the frozen model is held in 4-bit NF4 with double quantization (QLoRA); needs use_peft."""
    lora_r: int = _field(32, "the default of Thinking Machines' Tinker; large data asks for more", ge=1, le=4096)
    """Rank of the adapter's matrices: what it can hold; needs use_peft."""
    lora_alpha: int = _field(32, f"{REGRET}: no other value did better, at any rank", ge=1, le=65_536)
    """Scale of the adapter, whose product is multiplied by lora_alpha / lora_r; needs use_peft."""
    lora_target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = _field(
        "all-linear", f"{REGRET}: attention alone does worse, at equal numbers of parameters"
    )
    """Linear layers that get an adapter, by the last part of their names; all-linear means all but the output
    embedding. Needs use_peft."""

    save_steps: int | None = _field(None, "save_samples decides", ge=1)
    """Optimizer steps between checkpoints."""
    save_samples: int | None = _field(250_000, f"{PAPER}: checkpoints about every 250,000 samples", ge=1)
    """Samples between checkpoints; ignored where save_steps is given. The last step is always saved."""
    save_total_limit: int | None = _field(3, "room for the newest and two to fall back to", ge=1)
    """Checkpoints kept; older ones are removed after a newer one is safe on disk."""
    save_in_background: bool = _field(True, "training waits for a copy in memory, not for the disk")
    """Whether training goes on while a checkpoint is written, from a copy of weights and moments in CPU memory (12
    bytes a parameter, over all ranks, and the exported weights). Where that is more than half of the free memory,
    training waits instead, and says so."""

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
    on_alarm: Literal["warn", "stop"] = _field("warn", "an alarm is a rule of thumb; a person knows more of the run")
    """What happens when the loss diverges or stands still early, or the gradient norm oscillates (docs/advice.md): a
    warning, or the run saves its state and stops with exit code 3. Never changes the training."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Trackers that follow dynamics.jsonl; a failing tracker never stops a run."""

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value  # as Hugging Face's key

    @model_validator(mode="after")
    def _rate_of_the_method(self) -> Recipe:
        if self.use_peft and "learning_rate" not in self.model_fields_set:
            object.__setattr__(self, "learning_rate", LORA_LEARNING_RATE)  # frozen from here on
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        budget = self.max_tokens_per_device
        if isinstance(budget, int) and budget < 8:
            raise ValueError(f"max_tokens_per_device is {budget}, but a micro-batch needs at least 8 tokens; raise it")
        check_warmup(self.warmup_steps)
        self._check_phases()
        if self.optim == "adamw_anyprecision" and self.adam_beta2 > 0.99:
            raise ValueError(
                f"adam_beta2 is {self.adam_beta2}, but a bfloat16 second moment cannot follow steps of less than 1/256 "
                "of itself (optim adamw_anyprecision); set adam_beta2 to at most 0.99 or another optim"
            )
        for key in LORA_KEYS if not self.use_peft else ():
            if (value := getattr(self, key)) != Recipe.model_fields[key].default:
                raise ValueError(f"{key} is {value}, but no adapter is trained; set use_peft: true or remove {key}")
        return self

    def _check_phases(self) -> None:
        if self.phases is not None and "strategy" not in self.model_fields_set:
            raise ValueError("phases is given, but strategy is stacked, its default; set strategy: phased")
        select = self.phasing.select
        if select == "heldout_loss" and not self.eval_data:
            raise ValueError("phases.select is heldout_loss, but there is no eval_data; add held-out conversations")
        if select not in ("last", "heldout_loss") and not self.eval_tasks:
            raise ValueError(
                f"phases.select is '{select}', but there are no eval_tasks to score; add some, or set it to last or "
                "heldout_loss"
            )

    @property
    def phasing(self) -> Phases:
        """The phases of a phased run; for a stacked one the defaults, which ask for nothing."""
        return self.phases if self.phases is not None and self.strategy == "phased" else Phases()

    def warmup_count(self, total_steps: int) -> int:
        """Warm-up in optimizer steps for a run of ``total_steps``; a share is rounded up, as transformers does."""
        return math.ceil(self.warmup_steps * total_steps) if self.warmup_steps < 1 else int(self.warmup_steps)


def field_names() -> list[str]:
    """Recipe keys in the order of the schema."""
    return list(Recipe.model_fields)


def documented_names() -> list[str]:
    """Recipe keys with those inside ``data`` and ``phases``, as ``phases.by``."""
    return [name for key in field_names() for name in (key, *(f"{key}.{part}" for part in _fields_inside(key)))]


def field_of(key: str) -> FieldInfo:
    """The schema's entry of a key, or of one inside ``data`` or ``phases``."""
    head, _, inside = key.partition(".")
    return _fields_inside(head)[inside] if inside else Recipe.model_fields[head]


def _fields_inside(key: str) -> dict[str, FieldInfo]:
    inside: dict[str, dict[str, FieldInfo]] = {"data": DataEntry.model_fields, "phases": Phases.model_fields}
    return inside.get(key, {})


def values_of(key: str) -> list[str]:
    """The words that ``key``, or each entry of it, can be; empty where it takes other values, too."""
    kind = field_of(key).annotation
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return [str(word).lower() if isinstance(word, bool) else word for word in words]  # as YAML writes them


def default_reason(key: str, recipe: Recipe | None = None) -> str:
    """Why the default of ``key`` is what it is, in ``recipe`` if given; empty for keys without a stated reason."""
    if key == "learning_rate" and recipe is not None and recipe.use_peft:
        return f"{REGRET}: the best rate of LoRA is ten times that of full fine-tuning, {PAPER}'s 2e-5"
    extra = field_of(key).json_schema_extra
    return str(extra.get("reason", "")) if isinstance(extra, dict) else ""


def description(key: str) -> str:
    """The sentence that documents ``key``."""
    return " ".join((field_of(key).description or "").split())
