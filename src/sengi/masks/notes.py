"""What a few renderings of two-word conversations tell about a chat template: its control tokens and its oddities."""

from __future__ import annotations

import re

from sengi.errors import MaskError, ModelError
from sengi.masks.skeleton import Control
from sengi.masks.template import ChatTemplate

_USER, _ASSISTANT = {"role": "user", "content": "\ue000u\ue001"}, {"role": "assistant", "content": "\ue000a\ue001"}
_PLAIN_TURN = re.compile("\ue000a\ue001(.*)", re.DOTALL)


def _try_render(template: ChatTemplate, messages: list[dict[str, str]], ask: bool) -> str | None:
    """A probe's rendering, or None where the template refuses the probe."""
    try:
        return template.render(messages, None, ask)
    except MaskError as error:
        if error.reason == "template_limits":
            raise ModelError(f"{error.reason}: {error}") from error
        return None


def structural_tokens(template: ChatTemplate, added: set[str]) -> set[str]:
    """Added tokens not marked special that the template writes around messages: they are control tokens too."""
    text = _try_render(template, [_USER, _ASSISTANT, _USER], False) or _try_render(template, [_USER, _ASSISTANT], False)
    # Runs of white space and plain words can be added tokens too; those never steer a conversation.
    marks = {token for token in added if token.strip() and not token.strip().isalnum()}
    return {token for token in marks if text and token in text}


def closing_text(template: ChatTemplate, pattern: re.Pattern[str]) -> str | None:
    """The control token that follows a plain answer at the end of a conversation."""
    system = {"role": "system", "content": "s"}
    for messages in ([_USER, _ASSISTANT], [system, _USER, _ASSISTANT]):
        text = _try_render(template, messages, False)
        if text and (turn := _PLAIN_TURN.search(text)):
            token = pattern.search(turn[1])
            return token[0] if token else None
    return None


def template_notes(template: ChatTemplate, control: Control, eos: str | None) -> list[str]:
    """Where training under this template differs from what people expect, one sentence each.

    Args:
        template: the chat template.
        control: the tokenizer's control tokens.
        eos: the tokenizer's end-of-text token.
    """
    notes = []
    prompt = _try_render(template, [_USER], True)
    plain = _try_render(template, [_USER], False)
    whole = _try_render(template, [_USER, _ASSISTANT], False) or ""
    header = whole[len(prompt) : whole.find(_ASSISTANT["content"])] if prompt and whole.startswith(prompt) else ""
    if header.strip() and prompt == plain:
        notes.append(
            f"the template ignores add_generation_prompt: the header {header!r} is masked, so at inference the "
            "prompt must end with it"
        )
    if prompt and prompt != plain and whole and not whole.startswith(prompt):
        notes.append(
            "the generation prompt writes text that the template leaves out of a finished answer "
            f"({prompt[len(plain or '') :]!r}): inference starts otherwise than training"
        )
    if control.closing is None:
        notes.append("the template ends a turn with no control token: the model will not learn where to stop")
    elif control.closing != eos:
        notes.append(f"turns end with {control.closing}, not with eos ({eos}): stop there")
    return notes
