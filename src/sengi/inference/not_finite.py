"""What is said of a model whose numbers are not numbers: its scores would look like those of a bad model."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sengi.errors import NonFiniteError


def not_finite(model: PreTrainedModel, what: str) -> NonFiniteError:
    """The error for a model that gave NaN or infinity.

    Args:
        model: names its folder and the type of its weights.
        what: "logits", "log-likelihoods".
    """
    cure = "score an earlier checkpoint, or look into the run's dynamics.jsonl for the step where it broke"
    if model.dtype != torch.float32:
        stored = str(model.dtype).removeprefix("torch.")
        cure = f"if they only overflow in {stored}, dtype=float32 helps; else {cure}"
    place = model.config._name_or_path or type(model).__name__
    return NonFiniteError(f"{place}: the model's {what} are NaN or infinite, so its scores would mean nothing; {cure}")
