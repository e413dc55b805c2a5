"""Where an answer ends: the token that the chat template puts behind it."""

from __future__ import annotations

import datetime

from transformers import PreTrainedTokenizerBase

from sengi.data.template import ChatTemplate
from sengi.errors import MaskError

# Templates that print the date must not make today's scores differ from yesterday's.
TEMPLATE_DATE = datetime.date(2025, 1, 1)
_ANSWER = "\u2603answer\u2603"  # appears in no template


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
    """The special token that follows an assistant's answer, where generation must stop.

    It is often not the tokenizer's eos: base models keep the end of a *document* there.

    Args:
        tokenizer: with or without a chat template.

    Returns:
        Its id; None where there is no template, or no special token follows an answer.
    """
    template = chat_template(tokenizer)
    if template is None:
        return None
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = template.render(messages, None, False)
    except MaskError:  # a template that refuses this conversation says nothing of its ends
        return None
    tail = text.rpartition(_ANSWER)[2]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return next((index for index in ids if index in special), None)
