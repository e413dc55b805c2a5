"""Where an answer ends: the token that the chat template puts behind it."""

from __future__ import annotations

import datetime

from transformers import PreTrainedTokenizerBase

from sengi.masks.masker import Masker
from sengi.masks.template import ChatTemplate

# Templates that print the date must not make today's scores differ from yesterday's.
TEMPLATE_DATE = datetime.date(2025, 1, 1)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The tokenizer's chat template, compiled and probed under limits; None where it has none.

    Args:
        tokenizer: of several named templates the one called ``default`` counts.

    Raises:
        ModelError: the template does not compile or breaks the limits.
    """
    text = tokenizer.chat_template
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        return None
    return ChatTemplate(text, tokenizer.special_tokens_map, TEMPLATE_DATE)


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that follows an assistant's answer, where generation must stop.

    It is often not the tokenizer's eos: base models keep the end of a *document* there.

    Args:
        tokenizer: with or without a chat template.

    Returns:
        Its id; None where there is no template, or no control token follows an answer.
    """
    if chat_template(tokenizer) is None:
        return None
    # the masker's answer, so that generation stops at the very token that was trained
    return next(iter(Masker(tokenizer, today=TEMPLATE_DATE).closing_token_ids), None)
