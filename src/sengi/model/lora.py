"""LoRA and QLoRA in training: the model frozen, two thin matrices beside each linear layer, by peft's layers.

Shapes of one layer: weight W (out, in), frozen; A (r, in) random, B (out, r) zero; it computes W x + (alpha / r) B A x.
Because B begins as zero, the first step's loss is the base's.

A quantized base (QLoRA, arXiv 2305.14314) is held by bitsandbytes in 4-bit NF4 with double quantization and multiplied
out in the run's dtype. Quantizing is deterministic: a run that is continued has the same base, bit for bit.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sengi.errors import ModelError, RecipeError, class_and_text
from sengi.model.adapters import CONFIG, import_peft, is_adapter
from sengi.model.frozen_half import can_stay, looking_like_float32
from sengi.model.inspect import inspect_model_folder
from sengi.model.load import load_model
from sengi.recipe import Recipe

NAME = "default"  # peft's name for the one adapter of a model; it is not part of the names in the file
PREFIX = "base_model.model."  # of every name in adapter_model.safetensors
FOUR_BIT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: 4 bits, 8 for each 64 of them, 32 for each 256 of those


def check_method(folder: Path, recipe: Recipe) -> None:
    """Refuse what a run could not train, before any data or weight is read.

    Args:
        folder: of the model that is to be trained.
        recipe: says whether by an adapter.

    Raises:
        ModelError: the folder is an adapter itself, or a package is missing.
        RecipeError: lora_target_modules names no layer of this model.
    """
    if is_adapter(folder):
        raise ModelError(
            f"model_name_or_path: {folder} holds an adapter; make a model of it and its base, 'sengi export {folder} "
            "--merge --output DIR', and train that"
        )
    if recipe.use_peft:
        import_peft("use_peft: true")
        if recipe.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError("load_in_4bit: true needs bitsandbytes; pip install 'sengi[qlora]'")
        add_adapter(skeleton(folder), recipe)


def skeleton(folder: Path) -> PreTrainedModel:
    """The model of a folder from its config alone, on the meta device: no weight is read, nothing is held."""
    inspect_model_folder(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    assert isinstance(model, PreTrainedModel)
    return model


def load_frozen(folder: Path, recipe: Recipe, dtype: torch.dtype) -> PreTrainedModel:
    """The base of an adapter: as it is stored where the run computes in that type, with linear layers in 4 bits where
    the recipe asks for it, else in float32.

    Args:
        folder: of the model.
        recipe: says whether in 4 bits.
        dtype: of the run's computation.

    Raises:
        ModelError: the folder cannot be loaded.
    """
    if not recipe.load_in_4bit:
        return load_model(folder, dtype=dtype if stays_as_stored(folder, recipe, dtype) else torch.float32)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # until the packing is proved; then compute_in sets the run's
    )
    lm = load_model(folder, quantization_config=four_bit)
    for layer in _four_bit_layers(lm):
        # On CPUs with AVX512-BF16, bitsandbytes would repack the weights at the first evaluation, for a product that
        # has no gradient: training would go on without the layers below, silently.
        layer.support_avx512bf16_for_cpu = False
    return lm


def stays_as_stored(folder: Path, recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether a run's base is read in the type of its files and not in float32 (:func:`load_frozen`).

    Args:
        folder: of the model.
        recipe: of the run.
        dtype: of its computation.
    """
    return recipe.use_peft and not recipe.load_in_4bit and can_stay(folder, dtype)


def add_adapter(lm: PreTrainedModel, recipe: Recipe) -> Any:
    """Freeze ``lm`` and put a new adapter into it, in place.

    The matrices are drawn on the CPU from the recipe's seed, whatever was drawn before: every rank and every
    continued run begins with the same ones.

    Args:
        lm: a plain or quantized model.
        recipe: rank, alpha, targets and seed.

    Returns:
        peft's LoraConfig of the adapter.

    Raises:
        RecipeError: lora_target_modules names no layer of this model.
    """
    peft = import_peft("use_peft: true")
    targets = target_names(lm, recipe.lora_target_modules)
    config = peft.LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0.0,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    device = lm.device if lm.device.type == "meta" else torch.device("cpu")
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"), device:
            torch.default_generator.manual_seed(recipe.seed)
            with looking_like_float32(lm):  # peft rounds what it drew to the type of the layer beside it
                peft.inject_adapter_in_model(config, lm, adapter_name=NAME)
    except Exception as error:  # whatever peft raises for a layer that it has no adapter for
        raise RecipeError(
            f"lora_target_modules: {', '.join(targets)} of {type(lm).__name__} cannot have adapters "
            f"({class_and_text(error)}); name others"
        ) from error
    for parameter in lm.parameters():
        if parameter.requires_grad:  # peft takes the type of the layer beside it
            parameter.data = parameter.data.float()
    return config


def target_names(lm: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """The last parts of the names of the layers that get an adapter, sorted.

    Args:
        lm: a model without an adapter.
        wanted: ``all-linear``, which is all but the output embedding and :func:`_unfit_names`, or such names.

    Raises:
        RecipeError: a name is that of no linear layer inside the model; says which there are.
    """
    head = lm.get_output_embeddings()
    inside = [
        name for name, module in lm.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    there = sorted({name.rpartition(".")[2] for name in inside})
    if not there:
        raise RecipeError(f"use_peft: {type(lm).__name__} has no linear layers that an adapter could stand beside")
    if isinstance(wanted, str):
        unfit = _unfit_names(lm)
        return [name for name in there if name not in unfit]
    for target in wanted:
        if target not in there:
            raise RecipeError(
                f"lora_target_modules: {target!r} is no linear layer of {type(lm).__name__}; there are "
                f"{', '.join(there)} (the output embedding gets no adapter)"
            )
    return sorted(set(wanted))


def _unfit_names(lm: PreTrainedModel) -> set[str]:
    """Names of linear layers that ``all-linear`` leaves out, by what the family's code does with them.

    State-space kernels take the weights of all but the first projection and would pass an adapter by (peft refuses some
    of them). A layer with one output is a gate, a choice and no transformation.
    """
    unfit: set[str] = set()
    for module in lm.modules():
        layers = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
        if hasattr(module, "A_log"):  # of Mamba, its successors and hybrids
            unfit |= layers.keys() - {"in_proj"}
        unfit |= {name for name, layer in layers.items() if layer.out_features == 1}
    return unfit


def compute_in(lm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Hold frozen matrices in the type they are multiplied in, so that autocast need not make it again at every use.

    The products are the same numbers; embedding and norms are float32, and with them the residual stream.

    Args:
        lm: with an adapter, on its device.
        dtype: of the run's computation.
    """
    for layer in _four_bit_layers(lm):
        layer.compute_dtype = layer.weight.quant_state.dtype = dtype
    embedding = lm.get_input_embeddings().weight
    matrices = {module.weight for module in lm.modules() if type(module) is nn.Linear} - {embedding}
    for parameter in (p for p in lm.parameters() if not p.requires_grad and p.is_floating_point()):
        if parameter in matrices:
            parameter.data = parameter.data.to(dtype)
        else:  # a copy: off the weight file, which stays mapped as a whole otherwise
            parameter.data = parameter.data.to(torch.float32, copy=parameter.device.type == "cpu")


def whole_on_every_rank(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that sharding must leave alone: quantized ones are bytes whose scales lie elsewhere."""
    return {layer.weight for layer in _four_bit_layers(model)}


def is_adapter_state(names: Iterable[str]) -> bool:
    """Whether these are names of an adapter's matrices in a model."""
    return any(f".lora_A.{NAME}." in name for name in names)


def config_file(config: Any, base: str) -> tuple[str, bytes]:
    """adapter_config.json as peft writes it, but with the targets sorted: a set has another order in every process.

    Args:
        config: of :func:`add_adapter`.
        base: name of the base, for ``base_model_name_or_path``.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.inference_mode, config.base_model_name_or_path = True, base
        config.save_pretrained(folder)
        values = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    values["target_modules"] = sorted(values["target_modules"])
    return CONFIG, json.dumps(values, indent=2, sort_keys=True).encode()


def file_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What adapter_model.safetensors holds, under peft's names.

    Args:
        state: name in the model -> matrix.
    """
    return {f"{PREFIX}{name.replace(f'.{NAME}.', '.')}": tensor for name, tensor in state.items()}


def _four_bit_layers(model: nn.Module) -> list[Any]:
    """bitsandbytes' layers; told by their weights' quant_state, so that bitsandbytes need not be imported."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and hasattr(m.weight, "quant_state")]
