"""Try an unknown chat template in a child process that may use little CPU time and memory.

A template from a model folder can loop for ever or ask for gigabytes; neither can be stopped safely inside this
process (one ``'a' * 10**10`` is a single call into C). So the first renders happen in a child with hard limits
(``setrlimit``). This file is both sides: run as a script it is the child, which imports nothing but Jinja.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDERED_CHARS = 32_000_000  # 8M tokens and more: longer than any context that a row could fill
PROBE_CPU_SECONDS = 2  # a real template needs milliseconds
PROBE_MEMORY_BYTES = 256 * 2**20  # address space above what the interpreter and Jinja hold at start
_LIMIT_EXIT = 3

_USER, _ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_PROBES: tuple[tuple[list[dict[str, str]], bool], ...] = (
    ([_USER], True),
    ([_USER, _ASSISTANT], False),
    ([{"role": "system", "content": "s"}, _USER, _ASSISTANT, _USER], True),
)


def probe_template(text: str, variables: Mapping[str, Any]) -> None:
    """Render ``text`` with short conversations in a child process with limits.

    What the template raises by itself is no matter here: it is reported for the conversation that meets it.

    Args:
        text: Jinja source of the chat template.
        variables: special tokens by name.

    Raises:
        ModelError: the child ran out of CPU time, memory or output length.
    """
    _probe(text, json.dumps({name: str(value) for name, value in variables.items()}, sort_keys=True))


@functools.lru_cache(maxsize=32)
def _probe(text: str, variables: str) -> None:
    from sengi.errors import ModelError  # not at the top: the child runs this file without the package

    request = json.dumps({"template": text, "variables": json.loads(variables)})
    try:
        status = subprocess.run(
            [sys.executable, "-I", __file__],
            input=request.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20 * PROBE_CPU_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        status = _LIMIT_EXIT
    if status != 0:
        raise ModelError(
            f"template_limits: the chat template needs more than {PROBE_CPU_SECONDS} s of CPU time, "
            f"{PROBE_MEMORY_BYTES // 2**20} MiB of memory or {MAX_RENDERED_CHARS:,} characters for a two-word "
            "conversation: use another chat_template.jinja"
        )


class _GenerationTag(Extension):
    """``{% generation %}`` blocks render their body, as in transformers."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Replace the tag by its body."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    """An environment with the names that chat templates use; only cost matters here, not the exact text."""

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: "2025-01-01")
    return environment


def _limit_self() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (PROBE_CPU_SECONDS, PROBE_CPU_SECONDS))
    with contextlib.suppress(FileNotFoundError):  # macOS has no /proc and does not enforce RLIMIT_AS either
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + PROBE_MEMORY_BYTES, used + PROBE_MEMORY_BYTES))


def _child() -> int:
    request = json.load(sys.stdin)
    _limit_self()
    for messages, add_generation_prompt in _PROBES:
        try:
            template = _environment().from_string(request["template"])
            size = 0
            context = {"messages": messages, "tools": None, "add_generation_prompt": add_generation_prompt}
            for piece in template.generate(**context, documents=None, **request["variables"]):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    return _LIMIT_EXIT
        except (MemoryError, OverflowError):
            return _LIMIT_EXIT
        except Exception:  # a template may refuse a probe; a real row will tell
            continue
    return 0


if __name__ == "__main__":
    sys.exit(_child())
