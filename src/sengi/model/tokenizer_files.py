"""A tokenizer as files that every reader understands the same way."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sengi.errors import ModelError


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer with its chat template in both forms, byte for byte the same.

    transformers and vLLM read ``chat_template.jinja`` first, llama.cpp and TGI the field of
    ``tokenizer_config.json``: a folder with one form, or with two that differ, is not the same model everywhere.

    Args:
        tokenizer: its ``chat_template`` must be one template (or None).
        folder: an existing folder.
    """
    tokenizer.save_pretrained(str(folder))
    template = tokenizer.chat_template
    if template is None:
        return
    if not isinstance(template, str):
        raise ModelError(f"{folder}: the tokenizer has {len(template)} named chat templates; keep one, set as a string")
    (folder / "chat_template.jinja").write_bytes(template.encode("utf-8"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = template
    # How this process loaded it is no property of the tokenizer.
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    if config.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name; readers on 4 know the old one
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
