"""The base model of a run as it is trained: with its adapter, padding-free, tried."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sengi.inference.lent_model import rope_limit
from sengi.model.checkpointing import checkpoint_layers, transformer_layers
from sengi.model.compiled import compile_layers
from sengi.model.frozen_half import computing_in_float32
from sengi.model.load import load_model, load_tokenizer
from sengi.model.lora import add_adapter, compute_in, load_frozen
from sengi.model.supervised import SupervisedModel, prepare, try_on_device
from sengi.train.export import adapter_files, export_files
from sengi.train.setup import DTYPES, Setup
from sengi.train.sharding import reshard


@dataclass(frozen=True)
class Trainable:
    """A model that can be moved to its device or sharded.

    Attributes:
        model: the model; parameters that are not trained need no gradient.
        files: what an exported checkpoint holds beside weights, name -> content.
        autocast: dtype of the computation, or None for float32.
    """

    model: SupervisedModel
    files: dict[str, bytes]
    autocast: torch.dtype | None


def load_trainable(setup: Setup) -> Trainable:
    """Read the weights of a run's base model and make it what the recipe asks for, but for its speed.

    They lie on the CPU, or where bitsandbytes puts what it quantizes: a GPU need never hold what the run does not,
    float32 in place of an adapter's frozen bfloat16, or the shards of other processes.

    Raises:
        ModelError: the model cannot be loaded safely or is not supported.
    """
    recipe, dtype = setup.resolved.recipe, DTYPES[setup.plan.dtype]
    tokenizer = load_tokenizer(setup.model_folder)
    if recipe.use_peft:
        lm = load_frozen(setup.model_folder, recipe, dtype)
        files = adapter_files(add_adapter(lm, recipe), tokenizer, recipe.model_name_or_path, setup.model_folder)
    else:
        lm = load_model(setup.model_folder)
        files = export_files(lm, tokenizer, dtype)
    autocast = dtype if dtype != torch.float32 else None
    stores = [setup.store, *([setup.heldout] if setup.heldout is not None else [])]
    longest = max(int(store.lengths.max()) for store in stores)
    with computing_in_float32(lm):
        supervised = prepare(lm, packs=longest < rope_limit(lm))
    if recipe.use_peft and autocast is not None:
        compute_in(lm, autocast)
    return Trainable(supervised, files, autocast)


def make_ready(base: Trainable, setup: Setup, device: torch.device, compiled: bool = False) -> bool:
    """Try a model where it lies now, then let its layers be compiled and checkpointed; all processes together.

    Args:
        base: moved to ``device`` or sharded.
        setup: of the run.
        device: of the training.
        compiled: whether its layers are to be compiled; those that go one document at a time are not.

    Returns:
        Whether its layers are compiled when they are first called.

    Raises:
        ModelError: the model computes something else there.
    """
    try_on_device(base.model, device, base.autocast)
    reshard(base.model)
    layers = transformer_layers(base.model)
    if compiled := compiled and base.model.padding_free:
        compile_layers(layers)
    checkpoint_layers(layers, setup.plan.gradient_checkpointing)
    return compiled
