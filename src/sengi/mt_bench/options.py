"""What an evaluation on MT-Bench needs to know: files, judge, patience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sengi.errors import InputError

MAX_NEW_TOKENS = 1024  # of an answer, as FastChat's gen_model_answer.py
JUDGE_MAX_TOKENS = 2048  # of a judgement, as FastChat's run_judge_single
JUDGE_TEMPERATURE = 0.0
OPENAI = "api.openai.com"


@dataclass(frozen=True)
class MTBenchOptions:
    """Files and judge of MT-Bench.

    Attributes:
        data: folder in FastChat's layout: ``question.jsonl``, ``reference_answer/<judge>.jsonl`` and
            ``judge_prompts.jsonl`` (in the folder or in the one above it).
        judge_base_url: address of an OpenAI-compatible endpoint, for example ``http://localhost:8000/v1``.
        judge_model: name of the judge there.
        output: folder for ``model_answer/``, ``model_judgment/`` and ``cache/``; may be ``data`` itself.
        judge_api_key_env: NAME of the environment variable that holds the key; not needed for an endpoint on this
            machine, and ``OPENAI_API_KEY`` for OpenAI's own address. The key itself is never written.
        concurrency: most requests to the judge at once.
        timeout: seconds for one judgement, from request to the last byte of the reply.
        max_retries: how often a failed request is sent again (rate limit, server error, timeout, lost connection);
            eight retries wait about three minutes in all.
        repeat_share: share of the judgements that are made twice, 0 to 1, to measure the judge's own noise.
        limit: only the first so many questions.

    Raises:
        InputError: a value that cannot be.
    """

    data: Path
    judge_base_url: str
    judge_model: str
    output: Path
    judge_api_key_env: str = ""
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 8
    repeat_share: float = 0.1
    limit: int | None = None

    @property
    def key_variable(self) -> str:
        """Name of the environment variable that holds the judge's key; OpenAI's key goes to nobody else unasked."""
        is_openai = urlsplit(self.judge_base_url).hostname == OPENAI
        return self.judge_api_key_env or ("OPENAI_API_KEY" if is_openai else "")

    def __post_init__(self) -> None:
        url = urlsplit(self.judge_base_url)
        if url.username or url.password or url.query:
            # Not shown: what stands there may be a key.
            raise InputError(
                "--judge-url: holds a user name, password or query, which would end up in files; "
                "put the key into an environment variable and name that by --judge-key-env"
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(
                f"--judge-url {self.judge_base_url}: not an address; write it like http://localhost:8000/v1"
            )
        if not self.judge_model.strip():
            raise InputError("--judge-model: empty; give the name under which the endpoint serves the judge")
        if self.concurrency < 1:
            raise InputError(f"--judge-concurrency {self.concurrency}: no request could be sent; give 1 or more")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise InputError(f"--judge-timeout {self.timeout}: give a number of seconds above 0")
        if self.max_retries < 0:
            raise InputError(f"max_retries {self.max_retries}: give 0 or more")
        if not 0 <= self.repeat_share <= 1:
            raise InputError(f"--judge-repeat {self.repeat_share}: give a share between 0 and 1, for example 0.1")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit {self.limit}: no question would be left; give 1 or more")
