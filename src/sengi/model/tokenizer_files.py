"""A tokenizer as files that every reader understands the same way."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer with its chat template in both forms, byte for byte the same.

    transformers and vLLM read ``chat_template.jinja`` first, llama.cpp and TGI the field of
    ``tokenizer_config.json``: a folder with one form, or with two that differ, is not the same model everywhere.

    Args:
        tokenizer: of several named templates the one called ``default`` is written so; others stay beside it, in
            ``additional_chat_templates/``.
        folder: an existing folder.
    """
    tokenizer.save_pretrained(str(folder))
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template is None:
        return
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
