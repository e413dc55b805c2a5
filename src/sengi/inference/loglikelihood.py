"""How likely a model finds continuations of contexts: the one scorer of the house.

Requests that begin alike share what they have in common (:mod:`sengi.inference.prefix_tree`): a few-shot prompt is
computed once for all its questions, a question once for all its choices, and one-token answers are all read from
one row of logits. Logits are computed only where a token of a continuation is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from sengi.errors import InputError
from sengi.inference.lent_model import lent, rope_limit
from sengi.inference.not_finite import not_finite
from sengi.inference.onednn import PACK_MULTIPLE, through_onednn
from sengi.inference.prefix_tree import PrefixTree
from sengi.inference.token_logits import Chunks, PlainLogits, TreeLogits, shares_prefixes
from sengi.inference.tree_attention import NAME
from sengi.model.context import context_length

BATCH_TOKENS = 4096  # new tokens of a forward call
# On the CPU, least and most: more take memory (512 took 10 to 30 MB more than 256 with SmolLM2-135M, 256 took 5 MB more
# than 128) and little less time (up to 5%). Between them, as many as the longest text alone would take.
CPU_TOKENS = 128, 512
KEYS_PER_TOKEN = 16  # keys that the nodes of a pack see, over the token budget: CUDA's kernel has to gather them

Request = tuple[Sequence[int], Sequence[int]]


class LogLikelihood(NamedTuple):
    """The score of one continuation.

    Attributes:
        sum: natural log-probability of its tokens, summed.
        is_greedy: every token of it is the likeliest one at its place.
    """

    sum: float
    is_greedy: bool


OnScored = Callable[[list[int], list[LogLikelihood]], None]


class Scorer:
    """Scores continuations with a causal language model; the model is left as it was found.

    Attributes:
        shares_prefixes: False for a family that cannot be computed along a prefix tree (state-space layers, attention
            code of its own): then every distinct text is one forward call.
        tokens_computed: tokens that went through the model so far, the trial's not counted.

    Args:
        model: a transformers causal LM in evaluation mode; it is tried on 32 tokens.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if model.training:
            raise ValueError("Scorer got a model in training mode, where dropout makes scores random; call eval()")
        self._model = model
        self._limit = context_length(model.config)
        self._rope_limit = rope_limit(model)
        self.shares_prefixes = shares_prefixes(model)
        self.tokens_computed = 0

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], *, batch_tokens: int | None = None, on_scored: OnScored | None = None
    ) -> list[LogLikelihood]:
        """Score every continuation.

        Args:
            requests: token ids of (context, continuation), at least one of each. The model reads the context and the
                continuation without its last token.
            batch_tokens: most new tokens in a forward call; without it 4,096. A CPU takes at most 512.
            on_scored: called after each forward call with the indices of the requests that it finished, and their
                scores.

        Returns:
            One entry a request, in the order given; batches change it by no more than rounding.

        Raises:
            InputError: a request without context or continuation, or longer than the model's context.
            NonFiniteError: a log-likelihood is NaN; requests that were handed to ``on_scored`` before are right.
        """
        batch_tokens = BATCH_TOKENS if batch_tokens is None else batch_tokens
        self._check(requests, batch_tokens)
        # A rope that changes with the length of the text gives the same token other keys in a longer text.
        apart = [len(c) + len(a) - 1 >= self._rope_limit or not self.shares_prefixes for c, a in requests]
        run = _Run(self._model, requests, on_scored)
        for plain in (True, False):
            if chosen := [index for index, is_apart in enumerate(apart) if is_apart == plain]:
                self._score(run, chosen, plain, batch_tokens)
        return run.results()

    def _score(self, run: _Run, chosen: list[int], plain: bool, batch_tokens: int) -> None:
        """Score some requests, all in one way."""
        sequences = ([*run.requests[i][0], *run.requests[i][1][:-1]] for i in chosen)
        tree = PrefixTree(sequences, None) if plain else PrefixTree(sequences)
        logits = PlainLogits(self._model, tree) if plain else TreeLogits(self._model, tree)
        targets = _Targets(tree, run.requests, chosen)
        size = min(batch_tokens, _cpu_tokens(tree.longest)) if self._model.device.type == "cpu" else batch_tokens
        with ExitStack() as stack:
            if not plain:
                stack.enter_context(lent(self._model, NAME))
                stack.enter_context(through_onednn(self._model))
            for pack in tree.nodes() if plain else tree.packs(size, KEYS_PER_TOKEN * batch_tokens):
                self.tokens_computed += pack.end - pack.begin
                low, high = np.searchsorted(targets.rows, (pack.begin, pack.end))
                if low < high:
                    rows, row_of = np.unique(targets.rows[low:high], return_inverse=True)
                    run.read(logits.of(pack, rows), row_of, targets.request[low:high], targets.token[low:high])
                elif isinstance(logits, TreeLogits):
                    logits.skip(pack)

    def _check(self, requests: Sequence[Request], batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; a forward call needs 1 token or more")
        for index, (context, continuation) in enumerate(requests):
            if not context or not continuation:
                empty = "continuation" if context else "context"
                raise InputError(
                    f"request {index}: its {empty} has no token, so there is nothing to predict from or to"
                )
            length = len(context) + len(continuation) - 1
            if self._limit is not None and length > self._limit:
                raise InputError(
                    f"request {index}: {length} tokens, the model reads at most {self._limit} "
                    "(max_position_embeddings); shorten the context, for example with fewer few-shot examples"
                )


def _cpu_tokens(longest: int) -> int:
    least, most = CPU_TOKENS
    return min(max(least, longest + -longest % PACK_MULTIPLE), most)


class _Targets:
    """What is to be read where: one entry a token of a continuation, sorted by the place that predicts it."""

    def __init__(self, tree: PrefixTree, requests: Sequence[Request], chosen: list[int]) -> None:
        rows: list[int] = []
        tokens: list[int] = []
        counts = []
        for text, index in zip(tree.text_of, chosen, strict=True):
            context, continuation = requests[index]
            places = tree.rows(text, len(context) - 1, len(context) + len(continuation) - 1)
            for part in reversed(places):
                rows.extend(part)
            tokens.extend(continuation)
            counts.append(len(continuation))
        unsorted = np.asarray(rows, dtype=np.int64)
        order = np.argsort(unsorted, kind="stable")
        self.rows = unsorted[order]
        self.token = np.asarray(tokens, dtype=np.int64)[order]
        self.request = np.repeat(np.asarray(chosen, dtype=np.int64), counts)[order]


class _Run:
    """The scores of one call, as they come in."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], on_scored: OnScored | None) -> None:
        self.requests = requests
        self._model = model
        self._on_scored = on_scored
        self._sums = np.zeros(len(requests))
        self._greedy = np.ones(len(requests), dtype=bool)
        self._missing = np.asarray([len(continuation) for _, continuation in requests], dtype=np.int64)

    def read(self, chunks: Chunks, row_of: Any, request: Any, token: Any) -> None:
        """Take one forward call.

        Args:
            chunks: logits of its rows, (slice of the rows, (rows of the slice, V)).
            row_of: by target, the row that predicts it, ascending.
            request: by target, whose it is.
            token: by target, its id.
        """
        for part, logits in chunks:
            low, high = np.searchsorted(row_of, (part.start, part.stop))
            whose = request[low:high]
            row = torch.as_tensor(row_of[low:high] - part.start, device=logits.device)
            wanted = torch.as_tensor(token[low:high], device=logits.device)
            chosen, (top, likeliest) = logits[row, wanted], logits.max(dim=1)
            # In place: a second tensor of the size of the logits would be the largest one here.
            total = top + logits.sub_(top[:, None]).exp_().sum(dim=1).log_()
            del logits  # or two chunks would be there while the next one is computed
            log_probs = (chosen - total[row]).double().cpu().numpy()
            if np.isnan(log_probs).any():  # a token that cannot come has minus infinity, which is a number
                raise not_finite(self._model, "log-likelihoods")
            np.add.at(self._sums, whose, log_probs)
            np.logical_and.at(self._greedy, whose, (likeliest[row] == wanted).cpu().numpy())
        counted = np.bincount(request, minlength=0)
        touched = np.flatnonzero(counted)
        self._missing[touched] -= counted[touched]
        if self._on_scored and (done := touched[self._missing[touched] == 0].tolist()):
            self._on_scored(done, [self._result(index) for index in done])

    def results(self) -> list[LogLikelihood]:
        """All scores, in the order of the requests."""
        assert not self._missing.any()
        return [self._result(index) for index in range(len(self.requests))]

    def _result(self, index: int) -> LogLikelihood:
        return LogLikelihood(float(self._sums[index]), bool(self._greedy[index]))
