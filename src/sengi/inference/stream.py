"""One reply as it is written, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.inference.not_finite import not_finite
from sengi.inference.prompts import Prompts, stop_ids


def stream_reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Write the next assistant turn of a conversation, piece by piece.

    Args:
        model: in evaluation mode.
        tokenizer: with a chat template.
        messages: the conversation, ending with the user's turn.
        max_new_tokens: longest reply, in tokens.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the distribution at this temperature.

    Yields:
        Pieces of text that joined are the reply; a character of several tokens comes when it is whole.

    Raises:
        NonFiniteError: the model gave NaN.
    """
    prompts = Prompts(tokenizer)
    stops = set(stop_ids(model, tokenizer))
    inputs = torch.tensor([prompts.ids(prompts.text(messages))], device=model.device)
    cache: Any = None
    reply: list[int] = []
    shown = ""
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[0, -1]
            if not bool(logits.max().isfinite()):
                raise not_finite(model, "logits")
            if temperature > 0:
                inputs = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[None]
            else:
                inputs = logits.argmax(-1)[None, None]
        if int(inputs) in stops:
            break
        reply.append(int(inputs))
        text = prompts.decode(reply)
        # The replacement character at the end stands for bytes whose character is not complete yet.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    text = prompts.decode(reply)
    if len(text) > len(shown):
        yield text[len(shown) :]
