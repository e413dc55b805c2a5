"""``sengi chat``: talk to a checkpoint in the terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from sengi.cli.console import err
from sengi.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a model writes must not move the cursor or rename the window.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

HELP = "/reset forgets the conversation, /quit ends, Ctrl-C stops an answer"


def chat(checkpoint: str, *, max_new_tokens: int = 256, temperature: float = 0.0, system: str | None = None) -> int:
    """Talk to a model; without a terminal, each line of standard input is one turn.

    Args:
        checkpoint: A model or checkpoint folder, a GGUF file, a hub id or smollm2-135m.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; 0.7 varies.
        system: A system message to start with; without one the template's own default holds.

    Returns:
        The exit status.
    """
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: no token could be written; give 1 or more")
    if not 0 <= temperature <= 10:
        raise InputError(f"--temperature {temperature}: out of range; give 0 (greedy) to 10")
    import torch

    from sengi.model.load import load_model, load_tokenizer
    from sengi.model.resolve import resolve_model

    with err.status("loading the model"):
        folder = resolve_model(checkpoint)
        tokenizer = load_tokenizer(folder)
        model: Any = load_model(folder, dtype=torch.float32)
        if torch.cuda.is_available():
            model = model.to("cuda")
    if sys.stdin.isatty():
        err.print(HELP)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while (line := _read_line()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(start)
            err.print("the conversation is forgotten")
        elif line == "/help":
            err.print(HELP)
        elif line:
            messages.append({"role": "user", "content": line})
            reply = _say(model, tokenizer, messages, max_new_tokens, temperature)
            messages.append({"role": "assistant", "content": reply})
    return 0


def _read_line() -> str | None:
    """The user's next line without outer white space; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        # With nothing to stop, Ctrl-C clears the line, as in a shell.
        print()
        return ""


def _say(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    max_new_tokens: int,
    temperature: float,
) -> str:
    """Print an answer while it is written; Ctrl-C keeps what there is."""
    from sengi.inference.stream import stream_reply

    reply = ""
    try:
        for piece in stream_reply(model, tokenizer, messages, max_new_tokens=max_new_tokens, temperature=temperature):
            print(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece), end="", flush=True)
            reply += piece
    except KeyboardInterrupt:
        err.print(" (stopped)", end="")
    print(flush=True)
    return reply
