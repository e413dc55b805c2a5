"""lm-eval's generation arguments, as our engine understands them; what it does not know is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sengi.errors import InputError
from sengi.harness.lm_eval_api import handle_stop_sequences, normalize_gen_kwargs

SAMPLING_ONLY = {"top_p", "top_k", "min_p", "typical_p"}  # without effect where the likeliest token is taken


@dataclass(frozen=True)
class GenerationArguments:
    """How one answer is written.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        max_total: longest prompt and answer together, where the task asks for that instead.
        stop: texts that end the answer.
        temperature: 0 takes the likeliest token.
        top_p: share of probability that is drawn from.
    """

    max_new_tokens: int
    max_total: int | None
    stop: tuple[str, ...]
    temperature: float
    top_p: float

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


def read_arguments(
    given: Mapping[str, Any], default_max_tokens: int, eos: str | None, task: str
) -> GenerationArguments:
    """Read the ``generation_kwargs`` of a task with lm-eval's own rules.

    Args:
        given: ``until``, ``max_gen_toks`` and its aliases, ``max_length``, ``do_sample``, ``temperature``, ``top_p``.
        default_max_tokens: where the task names no length.
        eos: text of the token that ends a document; it ends every answer.
        task: for messages.

    Raises:
        InputError: an argument is not supported or the values contradict each other.
    """
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), default_max_tokens))
    stop = handle_stop_sequences(kwargs.pop("until"), eos=eos)
    sampled = bool(kwargs.pop("do_sample"))
    temperature = float(kwargs.pop("temperature", 0.0) or 0.0)
    if sampled and temperature <= 0:
        raise InputError(f"task {task}: do_sample=true with temperature={temperature:g}; set temperature above 0")
    top_p = float(kwargs.pop("top_p", None) or 1.0)
    max_new_tokens, total = kwargs.pop("max_gen_toks"), kwargs.pop("max_length", None)
    unknown = set(kwargs) - (set() if sampled else SAMPLING_ONLY)
    unknown -= {name for name in ("num_beams", "num_return_sequences") if kwargs.get(name) == 1}
    unknown -= {name for name in ("repetition_penalty", "length_penalty") if kwargs.get(name) == 1.0}
    if unknown:
        names = ", ".join(f"{name}={kwargs[name]}" for name in sorted(unknown))
        raise InputError(
            f"task {task}: generation arguments {names} are not supported; run this task with --model hf, "
            "or take them out with --gen_kwargs"
        )
    return GenerationArguments(
        max_new_tokens=max_new_tokens,
        max_total=None if total is None else int(total),
        stop=tuple(text for text in stop if text),
        temperature=temperature if sampled else 0.0,
        top_p=top_p if sampled else 1.0,
    )


def fit_prompt(
    prompt: list[int], arguments: GenerationArguments, max_length: int, place: str
) -> tuple[list[int], int, int]:
    """Cut a prompt on the left so that the longest answer fits behind it, as hf does.

    Args:
        prompt: token ids.
        arguments: of the task.
        max_length: the model's context in tokens.
        place: task and question, for messages.

    Returns:
        The prompt, the most tokens of its answer, and the number of tokens cut.

    Raises:
        InputError: the arguments leave no room for the prompt or for the answer.
    """
    room = max_length - arguments.max_new_tokens
    if room <= 0:
        raise InputError(
            f"{place}: asks for up to {arguments.max_new_tokens} new tokens, the model's context has {max_length}; "
            "set a smaller max_gen_toks with --gen_kwargs or leave the task out"
        )
    cut = max(0, len(prompt) - room)
    prompt = prompt[cut:]
    new_tokens = arguments.max_new_tokens if arguments.max_total is None else arguments.max_total - len(prompt)
    if new_tokens <= 0:
        raise InputError(
            f"{place}: max_length={arguments.max_total} leaves no room after a prompt of {len(prompt)} tokens; "
            "use max_gen_toks instead"
        )
    return prompt, new_tokens, cut


def sampling_seed(seed: int, prompt_key: str, repeat: int) -> int:
    """A seed for one drawn answer: another one for every prompt and repetition, the same on every run.

    Args:
        seed: of the evaluation.
        prompt_key: names prompt and arguments.
        repeat: how many times the same was asked before.

    Returns:
        63 bits.
    """
    digest = hashlib.sha256(f"{seed} {prompt_key} {repeat}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
