"""The model's own chat template: compiled once, rendered exactly as at inference, under limits.

``ChatTemplate.render`` gives the same text as ``tokenizer.apply_chat_template(..., tokenize=False)``: the same
Jinja environment (transformers' own sandbox), the same variables, the same clean-up of messages. Three things
are added. A template is untrusted code, so a probe renders it first in a child process with limits on CPU time
and memory (`masks.probe`), every later render has a time limit and a length limit, and today's date is frozen.
"""

from __future__ import annotations

import datetime
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import jinja2
from transformers.utils import chat_template_utils

from sengi.errors import MaskError, ModelError, one_line
from sengi.masks.probe import MAX_RENDERED_CHARS, probe_template

Message = dict[str, Any]

# transformers fills in the other names of the reasoning field and turns rich objects into plain data. Both helpers
# are private there; a version without them does not do that at inference either.
_alias_reasoning: Callable[[Any], Any] = getattr(chat_template_utils, "_alias_reasoning_fields", lambda chat: chat)
_plain: Callable[[Any], Any] = getattr(chat_template_utils, "_plain_template_data", lambda value: value)
_PLAIN_KEYS = {"role", "content"}


class TimeLimit:
    """Context manager: raises MaskError ``template_limits`` when one row uses more CPU time than allowed.

    Works in the main thread only, where signals arrive; elsewhere it does nothing. It counts CPU time
    (``ITIMER_VIRTUAL``), so a busy machine does not trip it, and it leaves ``SIGALRM`` to others. The timer ticks
    all the time and its tick looks whether the row is still the same: setting it for each row costs more than
    rendering the row.

    Args:
        seconds: CPU seconds of this process that a row may use; it is stopped after one to two times as many.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.row = 0  # the caller counts up at each row
        self._seen = -1
        self._active = False
        self._previous: Any = None

    def __enter__(self) -> TimeLimit:
        self._active = threading.current_thread() is threading.main_thread()
        self._seen = -1
        if self._active:
            self._previous = signal.signal(signal.SIGVTALRM, self._tick)
            signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds, self.seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._previous)

    def _tick(self, signum: int, frame: FrameType | None) -> None:
        if self._seen != self.row:
            self._seen = self.row
            return
        self._seen = -1
        raise MaskError(
            "template_limits",
            f"the chat template did not finish in {self.seconds:g} s of CPU time: use another chat template",
        )


class ChatTemplate:
    """A compiled chat template of one tokenizer.

    Args:
        text: the Jinja source.
        variables: what the template sees beside the messages: the tokenizer's ``special_tokens_map``.
        today: the date that ``strftime_now`` answers; frozen so that all rows of a store agree.

    Raises:
        ModelError: the template does not compile, or its probe breaks the limits.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], today: datetime.date) -> None:
        self.text = text
        self._variables = dict(variables)
        probe_template(text, self._variables)  # before compiling: Jinja computes constants then
        self._now = datetime.datetime.combine(today, datetime.time())
        try:
            self._compiled: Any = chat_template_utils._compile_jinja_template(text)
            self.syntax: jinja2.nodes.Template = self._compiled.environment.parse(text)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template does not compile, line {error.lineno}: {one_line(error)}: mend chat_template.jinja"
            ) from error
        syntax = self.syntax
        names = {node.name for node in syntax.find_all(jinja2.nodes.Name)}
        self.uses_date = "strftime_now" in names
        self.prompt_reads_messages = _prompt_reads_messages(syntax)
        # The generation tag is compiled to a call of the tracker extension.
        self.has_generation = any(
            isinstance(node.call.node, jinja2.nodes.ExtensionAttribute)
            for node in syntax.find_all(jinja2.nodes.CallBlock)
        )

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        """Render messages that went through `prepare`.

        Args:
            messages: the conversation, or the first part of one.
            tools: tool schemas or None.
            add_generation_prompt: end with the header that asks the model for its turn.

        Returns:
            The text that the tokenizer gets.

        Raises:
            MaskError: ``template_error`` (the template raised) or ``template_limits`` (too long, out of memory).
        """
        try:
            text = self._compiled.render(self._context(messages, tools, add_generation_prompt))
        except Exception as error:
            raise _render_error(error) from error
        return _bounded(text)

    def render_tracked(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render the whole conversation and report its ``{% generation %}`` blocks.

        Returns:
            The text, and (start, end) character positions of each block; no block where the template has none.

        Raises:
            MaskError: as `render`.
        """
        if not self.has_generation:
            return self.render(messages, tools, False), []
        pieces: list[str] = []
        blocks: list[tuple[int, int]] = []
        try:
            with self._compiled.environment.activate_tracker(pieces, blocks):
                for piece in self._compiled.generate(self._context(messages, tools, False)):
                    pieces.append(piece)  # the tracker reads this list to know where it stands
        except Exception as error:
            raise _render_error(error) from error
        return _bounded("".join(pieces)), blocks

    def _context(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> dict[str, Any]:
        context = {
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._variables,
        }
        if self.uses_date:
            context["strftime_now"] = self._now.strftime  # hides the environment's own, which reads the clock
        return context


def prepare(messages: Sequence[Message]) -> list[Message]:
    """Messages as ``apply_chat_template`` hands them to a template; our own ``train`` key is taken out.

    Args:
        messages: dicts with ``role`` and mostly ``content``.

    Returns:
        New list: keys with None dropped, plain data only, reasoning under every name that templates read.
    """
    prepared: list[Message] = []
    rich = False
    for message in messages:
        if message.keys() == _PLAIN_KEYS and type(message["content"]) is str and type(message["role"]) is str:
            prepared.append(message)
            continue
        rich = True
        prepared.append({k: _plain(v) for k, v in message.items() if v is not None and k != "train"})
    return list(_alias_reasoning(prepared)) if rich else prepared


def _prompt_reads_messages(syntax: jinja2.nodes.Template) -> bool:
    """Whether what ``add_generation_prompt`` adds can depend on messages: it names something set from them."""
    stored = {node.name for node in syntax.find_all(jinja2.nodes.Name) if node.ctx == "store"} | {"messages"}
    stored -= {"add_generation_prompt"}
    branches: list[jinja2.nodes.If | jinja2.nodes.CondExpr] = list(syntax.find_all(jinja2.nodes.If))
    branches += syntax.find_all(jinja2.nodes.CondExpr)
    for node in branches:
        tested = {name.name for name in node.test.find_all(jinja2.nodes.Name)}
        if isinstance(node.test, jinja2.nodes.Name):
            tested.add(node.test.name)
        if "add_generation_prompt" in tested and any(
            name.name in stored for name in node.find_all(jinja2.nodes.Name) if name.ctx == "load"
        ):
            return True
    return False


def _render_error(error: Exception) -> MaskError:
    if isinstance(error, MaskError):
        return error
    if isinstance(error, MemoryError | OverflowError):
        return MaskError("template_limits", "the chat template ran out of memory: use another chat template")
    return MaskError("template_error", f"the chat template refused the conversation: {one_line(error)}")


def _bounded(text: str) -> str:
    if len(text) > MAX_RENDERED_CHARS:
        raise MaskError(
            "template_limits",
            f"the chat template wrote {len(text):,} characters, the limit is {MAX_RENDERED_CHARS:,}: "
            "split the row or use another chat template",
        )
    return text
