"""Questions as the model meets them: one user turn under its own chat template, ready for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import ModelError
from sengi.model.inspect import read_config
from sengi.model.turn_end import chat_template, turn_end_id


class Prompts:
    """Render and tokenize the beginning of an assistant's turn.

    Args:
        tokenizer: must have a chat template.

    Raises:
        ModelError: it has none, or the template does not compile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        template = chat_template(tokenizer)
        if template is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, so it is not known how to ask; "
                "add chat_template.jinja to the folder"
            )
        self._template = template
        self._tokenizer = tokenizer

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation with the header of the answer at its end.

        Args:
            messages: ends with the user's turn.
        """
        return self._template.render(list(messages), None, True)

    def question(self, question: str) -> str:
        """The text up to the answer for a single question without a system message of ours."""
        return self.text([{"role": "user", "content": question}])

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text; the template has written its own special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the template's closing token and the eos of tokenizer and model.

    Returns:
        Sorted ids, possibly none.
    """
    return _stop_ids(tokenizer, getattr(model.generation_config, "eos_token_id", None))


def folder_stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As :func:`stop_ids`, of a model folder that is not loaded.

    Args:
        folder: the eos of its generation_config.json counts; without that file the model takes the one of its
            config.json, which is not looked for: that file is in the model's fingerprint.
        tokenizer: of the model.

    Raises:
        ModelError: generation_config.json is no JSON object.
    """
    path = folder / "generation_config.json"
    return _stop_ids(tokenizer, read_config(path).get("eos_token_id") if path.is_file() else None)


def _stop_ids(tokenizer: PreTrainedTokenizerBase, eos: Any) -> list[int]:
    found = {turn_end_id(tokenizer), tokenizer.eos_token_id}
    found |= set(eos) if isinstance(eos, list | tuple) else {eos}
    return sorted(index for index in found if index is not None)
