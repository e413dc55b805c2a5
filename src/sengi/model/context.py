"""How many tokens a model reads at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sengi.model.adapters import config_folder


def context_length(config: PretrainedConfig) -> int | None:
    """Positions that a model has (``max_position_embeddings``); None where its configuration does not say."""
    text: Any = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def folder_context_length(folder: Path) -> int | None:
    """As :func:`context_length`, of a model, checkpoint or adapter folder."""
    return context_length(AutoConfig.from_pretrained(str(config_folder(folder)), local_files_only=True))
