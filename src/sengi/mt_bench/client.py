"""Ask an OpenAI-compatible endpoint, with patience: time limits, retries with back-off, one line when it is in vain.

What an answer of the endpoint means here:

==============================================  ==========================================
a chat completion, whatever it says             a reply
429, 408, 409, 5xx, timeout, lost connection,   waits (``Retry-After``, else doubling with
a body that is no chat completion               jitter), asks again, at last an error
400 or 413: longer than the judge's context     a refusal of this request: counted
400: content filter                             a refusal of this request: counted
400: ``max_tokens`` or ``temperature`` unknown  asks without them from then on, noted
401, 403, 404, quota used up, other 4xx         an error at once: waiting mends nothing
==============================================  ==========================================
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from sengi.data.rows import printable
from sengi.errors import InputError, SengiError
from sengi.mt_bench.options import JUDGE_MAX_TOKENS, JUDGE_TEMPERATURE, MTBenchOptions

FIRST_WAIT = 1.0  # seconds before the first retry; doubles with each
LONGEST_WAIT = 60.0  # seconds, without word from the endpoint
LONGEST_RETRY_AFTER = 600.0  # seconds that an endpoint may ask us to wait
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_TOO_LONG = re.compile(
    r"context_length|context length|context window|maximum context|max_model_len|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"content[_ ](filter|policy|management)|invalid_prompt|safety", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said; ``cut`` when it reached the token limit."""

    text: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the judge does not take this one request, in fixed words, and in its own."""

    reason: str
    message: str


class _Again(Exception):
    """This attempt failed in a way that may pass.

    Args:
        what: short and fixed, to be counted.
        wait: seconds that the endpoint asked for, if it did.
        message: what the endpoint said about it.
    """

    def __init__(self, what: str, wait: float | None = None, message: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.wait = wait
        self.message = message


class JudgeClient:
    """The judge behind an endpoint; used with ``async with``, inside one event loop.

    Args:
        options: address, name and patience; the key is read from the environment here and kept in memory only.

    Attributes:
        retries: how often a request was sent again, by reason.
        notes: what was changed about the requests because the endpoint wanted it.

    Raises:
        InputError: the package openai is missing, or the key.
    """

    def __init__(self, options: MTBenchOptions) -> None:
        self._key = judge_key(options)
        try:
            import openai
        except ImportError:
            raise InputError("mt_bench: the judge is asked by the package openai; pip install 'sengi[eval]'") from None
        self._openai = openai
        self._options = options
        self._settings: dict[str, Any] = {"temperature": JUDGE_TEMPERATURE, "max_tokens": JUDGE_MAX_TOKENS}
        self._random = random.Random()
        # Always with a key of ours: without one the package would send OPENAI_API_KEY to whatever address this is.
        self._client = openai.AsyncOpenAI(
            base_url=options.judge_base_url, api_key=self._key or "none", timeout=options.timeout, max_retries=0
        )
        self.retries: Counter[str] = Counter()
        self.notes: list[str] = []

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, messages: list[dict[str, str]], what: str) -> Reply | Refusal:
        """One judgement, after as many attempts as it takes and the options allow.

        Args:
            messages: the conversation for the judge.
            what: names the request in an error, for example ``"question 81, turn 2"``.

        Raises:
            SengiError: no attempt succeeded.
            InputError: the endpoint refuses key, model or request: more attempts would be in vain.
        """
        attempts = self._options.max_retries + 1
        for attempt in range(attempts):
            try:
                return await self._attempt(messages)
            except _Again as failed:
                if attempt + 1 == attempts:
                    raise self._given_up(failed, attempts, what) from None
                self.retries[failed.what] += 1
                await asyncio.sleep(self._wait(attempt, failed))
        raise AssertionError("every attempt returns or raises")

    async def reach(self) -> None:
        """Find out whether anything answers at the address; what it answers does not matter, except about the key.

        Raises:
            InputError: nothing answers, or the key is refused.
        """
        try:
            async with asyncio.timeout(self._options.timeout):
                await self._client.models.list()
        except self._openai.AuthenticationError as error:
            raise self._refused(error) from None
        except self._openai.APITimeoutError:
            raise InputError(self._unreachable("no answer in time")) from None
        except self._openai.APIConnectionError as error:
            raise InputError(self._unreachable(self._words(error.__cause__ or error))) from None
        except TimeoutError:
            raise InputError(self._unreachable("no answer in time")) from None
        except (self._openai.OpenAIError, ValueError, TypeError):
            return  # something answers; many endpoints have no list of models

    async def _attempt(self, messages: list[dict[str, str]]) -> Reply | Refusal:
        sent = dict(self._settings)
        create: Any = self._client.chat.completions.create
        try:
            # The package's own limit counts the time between two pieces; a reply that drips would last for ever.
            async with asyncio.timeout(self._options.timeout):
                completion = await create(model=self._options.judge_model, messages=messages, **sent)
        except (TimeoutError, self._openai.APITimeoutError):
            raise _Again("timeout", message=f"no whole reply in {self._options.timeout:g} s") from None
        except self._openai.APIStatusError as error:
            return await self._status(error, sent, messages)
        except self._openai.APIConnectionError as error:
            raise _Again("connection", message=self._words(error.__cause__ or error)) from None
        except (self._openai.OpenAIError, ValueError, TypeError) as error:
            raise _Again("malformed reply", message=self._words(error)) from None
        return _read(completion)

    async def _status(self, error: Any, sent: dict[str, Any], messages: list[dict[str, str]]) -> Reply | Refusal:
        """What an HTTP status other than 200 means."""
        status, words = int(error.status_code), self._words(error)
        if status == 429 and error.code == "insufficient_quota":
            raise self._refused(error)
        if status in (408, 409, 429) or status >= 500:
            raise _Again(f"HTTP {status}", retry_after(error.response.headers), words)
        if status in (400, 413, 422):
            if status == 413 or _TOO_LONG.search(f"{error.code} {words}"):
                return Refusal("longer than the judge's context", words)
            if _FILTERED.search(f"{error.code} {words}"):
                return Refusal("refused by the judge's content filter", words)
            if sent != self._settings or self._adapt(error, words):
                return await self._attempt(messages)
        raise self._refused(error)

    def _adapt(self, error: Any, words: str) -> bool:
        """Reasoning models take neither ``max_tokens`` nor a temperature; True when something was changed."""
        if "max_tokens" in self._settings and (error.param == "max_tokens" or "max_completion_tokens" in words):
            self._settings["max_completion_tokens"] = self._settings.pop("max_tokens")
            self.notes.append("the judge takes no max_tokens; sent as max_completion_tokens")
        elif "temperature" in self._settings and error.param == "temperature":
            del self._settings["temperature"]
            self.notes.append("the judge takes no temperature 0; judged at its own temperature")
        else:
            return False
        return True

    def _wait(self, attempt: int, failed: _Again) -> float:
        """Seconds to the next attempt: what the endpoint asked for, else doubling; with jitter, so that the waiting
        requests do not come back all at once."""
        if failed.wait is not None:
            return failed.wait + self._random.uniform(0, FIRST_WAIT)
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * self._random.uniform(0.5, 1.0)

    def _given_up(self, failed: _Again, attempts: int, what: str) -> SengiError:
        said = f": {failed.message}" if failed.message else ""
        return SengiError(
            f"{self._options.judge_base_url}: judge {self._options.judge_model} failed {attempts} time(s) on {what}, "
            f"last by {failed.what}{said}; all judgements so far are kept: mend the endpoint or --judge-url "
            "(slow: --judge-timeout, rate limit: --judge-concurrency), then run the same command again"
        )

    def _refused(self, error: Any) -> InputError:
        status = int(error.status_code)
        variable = self._options.key_variable
        cure = {
            401: f"check the key in the environment variable {variable}"
            if variable
            else "it wants a key: name the environment variable that holds it by --judge-key-env",
            403: f"check what the key in {variable} may do (--judge-key-env)",
            404: f"check --judge-url and --judge-model {self._options.judge_model}",
            429: "the account has no quota left; top it up, then run the same command again",
        }.get(status, f"check --judge-url and --judge-model {self._options.judge_model}")
        return InputError(f"{self._options.judge_base_url}: the judge refuses: {self._words(error)}; {cure}")

    def _unreachable(self, why: str) -> str:
        return f"{self._options.judge_base_url}: no judge answers there ({why}); start it or correct --judge-url"

    def _words(self, error: BaseException) -> str:
        """What a foreign error says, on one line, without the key (endpoints like to repeat it)."""
        text = " ".join(str(error).split()) or type(error).__name__
        if len(self._key) >= 8:  # shorter ones are words like "none"
            text = text.replace(self._key, "***")
        return printable(text, 300)


def judge_key(options: MTBenchOptions) -> str:
    """The key from the environment; empty for an endpoint on this machine that was given none.

    Raises:
        InputError: the variable is not set, or holds what no HTTP header can carry.
    """
    name, host = options.key_variable, urlsplit(options.judge_base_url).hostname
    key = os.environ.get(name, "").strip() if name else ""
    if not name and host not in LOOPBACK:
        raise InputError(
            f"--judge-key-env: not given; name the environment variable that holds the key of {host} "
            "(with any word in it for an endpoint that wants none)"
        )
    if not key and host not in LOOPBACK:
        raise InputError(
            f"--judge-key-env {name}: this environment variable is not set; put the judge's key into it "
            "(any word for an endpoint that wants none)"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"--judge-key-env {name}: the value of this variable is no key: not plain ASCII; set it again")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait: ``Retry-After-Ms``, or ``Retry-After`` in seconds or as a date.

    Args:
        headers: of the reply; names in any case.

    Returns:
        0 to ``LONGEST_RETRY_AFTER``; None when it asks for nothing or cannot be read.
    """
    values = {name.lower(): value for name, value in headers.items()}
    seconds: float | None = None
    try:
        if "retry-after-ms" in values:
            seconds = float(values["retry-after-ms"]) / 1000
        elif "retry-after" in values:
            seconds = float(values["retry-after"])
    except ValueError:
        date = email.utils.parsedate_tz(values.get("retry-after", ""))
        seconds = email.utils.mktime_tz(date) - time.time() if date else None
    if seconds is None or seconds != seconds:  # not a number
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)


def _read(completion: Any) -> Reply:
    """The text of a completion; ``content`` is null where the judge said nothing."""
    choices = getattr(completion, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(first, "message", None)
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        raise _Again("malformed reply", message="the reply is no chat completion")
    return Reply(content or "", getattr(first, "finish_reason", None) == "length")
