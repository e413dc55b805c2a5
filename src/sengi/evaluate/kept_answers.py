"""What a model answered, kept on disk while an evaluation of own questions is under way, so that it can go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.harness.answering import Answering, Compute, Done
from sengi.harness.ranks import Alone
from sengi.harness.response_cache import ResponseCache, request_key
from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.loglikelihood import Scorer

Advance = Callable[[float], None]  # share of the requests that have an answer, 0 to 1


class KeptAnswers:
    """Asks a model what is not known yet; the same request once.

    Args:
        cache: folder of answers; None keeps none.
        facts: JSON facts that tell the model apart (:mod:`sengi.harness.loading`); needed with ``cache``.
    """

    def __init__(self, cache: Path | None = None, facts: Mapping[str, Any] | None = None) -> None:
        self._facts = dict(facts or {})
        self._answering = Answering(ResponseCache(cache, self._facts) if cache is not None else None, Alone())

    def log_likelihoods(
        self,
        model: PreTrainedModel,
        requests: Sequence[tuple[list[int], list[int]]],
        batch_tokens: int | None,
        advance: Advance,
    ) -> list[float]:
        """Sum of log-probabilities of each continuation after its context, in nats.

        Args:
            model: in evaluation mode.
            requests: token ids of context and continuation.
            batch_tokens: most new tokens in one forward call; None: as many as pay on the device.
            advance: called as it goes on.
        """

        def compute(share: list[int], done: Done) -> None:
            Scorer(model).score(
                [requests[place] for place in share],
                batch_tokens=batch_tokens,
                on_scored=lambda places, found: done([share[i] for i in places], [[one.sum] for one in found]),
            )

        keys = [request_key(self._facts, "loglikelihood", request, {}) for request in requests]
        return [float(answer[0]) for answer in self._answer(keys, compute, advance)]

    def texts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[GenerationRequest],
        batch_tokens: int | None,
        advance: Advance,
    ) -> list[str]:
        """The text that the model writes greedily for each request; arguments as in :meth:`log_likelihoods`."""

        def compute(share: list[int], done: Done) -> None:
            Generator(model, tokenizer).generate(
                [requests[place] for place in share],
                batch_tokens=batch_tokens,
                on_generated=lambda places, found: done([share[i] for i in places], found),
            )

        keys = [
            request_key(self._facts, "generate", [one.prompt], {"max_new_tokens": one.max_new_tokens})
            for one in requests
        ]
        return [str(answer) for answer in self._answer(keys, compute, advance)]

    def _answer(self, keys: list[str], compute: Compute, advance: Advance) -> list[Any]:
        return self._answering.answer(keys, lambda _: (), compute, lambda done, total: advance(done / max(1, total)))


def advancing(progress: Callable[[int], None] | None, count: int) -> Advance:
    """Tell ``progress`` of each new question among ``count``, as many of them as requests have an answer."""
    told = 0

    def advance(share: float) -> None:
        nonlocal told
        new = int(count * share) - told
        if progress and new > 0:
            told += new
            progress(new)

    return advance
