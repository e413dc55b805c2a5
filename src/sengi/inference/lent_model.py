"""What prefix trees and paged caches share: a model lent to another attention function, and where that ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from sengi.model.quiet import quiet_transformers


@contextmanager
def lent(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Lend ``model`` to a registered attention function; its own is back on exit, whatever happens inside."""
    before = model.config._attn_implementation
    with quiet_transformers():  # a family that cannot switch says so in a warning; a trial finds it out
        model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def layer_index(
    module: nn.Module,
    attention_mask: Tensor | None,
    dropout: float,
    sliding_window: int | None,
    options: Mapping[str, Any],
) -> int:
    """The number of the layer that calls, once it is sure that keys can be kept for it.

    Args:
        module: the attention module.
        attention_mask: must be None.
        dropout: must be 0.
        sliding_window: as the layer gave it.
        options: what else it gave: attention sinks (``s_aux``) and ``position_bias`` must not be there.

    Raises:
        ValueError: one of these, or a layer that does not say which layer it is or how far it sees.
    """
    if attention_mask is not None:
        raise ValueError("attention with kept keys got an attention_mask; it takes none")
    if dropout:
        raise ValueError(f"attention dropout {dropout} makes results random; put the model in evaluation mode")
    for name in ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is not supported in attention with kept keys")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(f"{type(module).__name__} has no layer_idx; its keys cannot be kept")
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    kind = kinds[layer] if kinds else "full_attention"
    if kind not in ("full_attention", "sliding_attention") or (kind == "sliding_attention" and not sliding_window):
        raise ValueError(f"layer {layer} ({kind}) does not tell its attention function how far a token sees")
    return int(layer)


def rope_limit(model: PreTrainedModel) -> float:
    """Texts of fewer tokens than this have positions that do not depend on their length, or on their neighbours'."""
    config: Any = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if not any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds):
        return float("inf")
    known = [kind.get("original_max_position_embeddings") for kind in kinds]
    return float(min([n for n in known if n] or [config.max_position_embeddings]))
