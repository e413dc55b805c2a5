"""Texts that a model writes: many prompts at once, each as if it were alone.

Rows come and go one by one (continuous batching): a finished row leaves the batch at once and the next prompt takes
its place, and a beginning that prompts share is computed once (:mod:`sengi.inference.paged_cache`).

transformers' own continuous batching was tried first. On the CPU (SmolLM2-135M, float32, one thread, four five-shot
GSM8K prompts, 32 tokens each) it wrote the same tokens as ``generate`` one prompt at a time, but took 1.5 times its
processor time (37.7 s against 25.7 s) and 1.8 times its memory (1,776 MB against 1,008 MB). It knows no stop
strings, and it logs an error where it should raise one. So there is one engine for all devices, and vLLM where it is
installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import InputError, class_and_text
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.lent_model import lent, rope_limit
from sengi.inference.not_finite import not_finite
from sengi.inference.onednn import through_onednn
from sengi.inference.paged_cache import BLOCK, blocks_of
from sengi.inference.paged_model import NAME, PagedModel
from sengi.inference.paged_support import OneRow, supports_paging
from sengi.inference.prompts import stop_ids
from sengi.inference.sampling import Sampler, next_tokens
from sengi.inference.shared_prefix import PrefixGroup, prefix_groups
from sengi.inference.vllm_engine import VllmEngine, use_vllm
from sengi.model.context import context_length

OnGenerated = Callable[[list[int], list[str]], None]
# Tokens kept at a time. On a processor eight-shot GSM8K then takes about as much memory as lm-eval's own backend.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1280, 16384


class Generator:
    """Writes texts with a causal language model; the model is left as it was found.

    Attributes:
        shares_steps: False for a family whose rows cannot lie in a paged cache (state-space layers, attention code of
            its own): then prompts are run one at a time.

    Args:
        model: in evaluation mode; it is tried on a few tokens.
        tokenizer: of the model.
        engine: ``transformers``, ``vllm``, or ``auto``: vLLM where it is installed, the model is on CUDA and its
            folder is given.
        folder: a folder with exactly the weights that the model has; vLLM loads it.

    Raises:
        InputError: vLLM was asked for and cannot be used.
        ValueError: the model is in training mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        engine: str = "auto",
        folder: Path | None = None,
    ) -> None:
        if model.training:
            raise ValueError("Generator got a model in training mode, where dropout makes texts random; call eval()")
        self._model = model
        self._tokenizer = tokenizer
        self._stops = frozenset(stop_ids(model, tokenizer))
        self._limit = context_length(model.config)
        self._rope_limit = rope_limit(model)
        self._engine = engine
        self._vllm_folder = folder if use_vllm(engine, folder, model.device) else None
        self._vllm: VllmEngine | None = None
        self.shares_steps = self._vllm_folder is not None or supports_paging(model)

    # Not inference mode: a buffer that a rope renews in it could never be used in training again.
    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        batch_tokens: int | None = None,
        on_generated: OnGenerated | None = None,
    ) -> list[str]:
        """Write a text for every request.

        Args:
            requests: what to write.
            batch_tokens: tokens whose keys and values are kept at a time, those of a shared prefix once; more only
                where one text alone is longer. Without it 1,280 on a CPU and 16,384 elsewhere.
            on_generated: called when texts are finished with the indices of their requests and the texts.

        Returns:
            The texts in the order of the requests, up to and without the first stop string or stop token (the
            template's closing token, the eos of tokenizer and model), without special tokens. Greedy texts do not
            depend on the batches but for rounding, drawn ones on the request's seed.

        Raises:
            InputError: a request without prompt or without tokens to write, with a prompt that leaves no room for
                an answer in the model's context, or with a temperature or top_p that cannot be; or vLLM was asked for
                and cannot start.
            NonFiniteError: the model gave NaN; texts that were handed to ``on_generated`` before are right.
        """
        if batch_tokens is None:
            batch_tokens = CPU_BATCH_TOKENS if self._model.device.type == "cpu" else GPU_BATCH_TOKENS
        self._check(requests, batch_tokens)
        texts = [""] * len(requests)

        def keep(indices: list[int], written: list[str]) -> None:
            for index, text in zip(indices, written, strict=True):
                texts[index] = text
            if on_generated and indices:
                on_generated(indices, written)

        def finish(rows: list[_Row]) -> None:
            keep([row.index for row in rows], [row.text() for row in rows])

        rows = [self._row(index, request) for index, request in enumerate(requests)]
        if rows and (vllm := self._start_vllm(max(len(row.request.prompt) + row.limit for row in rows))):
            for indices, written in vllm.generate(requests, [row.limit for row in rows]):
                keep(indices, written)
            return texts
        together = [row for row in rows if self.shares_steps and len(row.request.prompt) + row.limit < self._rope_limit]
        if together:
            with lent(self._model, NAME), through_onednn(self._model):
                for group in prefix_groups([row.request.prompt for row in together]):
                    self._write_group(group, [together[i] for i in group.indices], batch_tokens, finish)
        alone = set(range(len(rows))) - {row.index for row in together}
        for index in sorted(alone):
            self._write_alone(rows[index])
            finish([rows[index]])
        return texts

    def _start_vllm(self, longest: int) -> VllmEngine | None:
        """vLLM with room for texts of so many tokens, prompt included; None where it is not taken."""
        if self._vllm_folder is not None and (self._vllm is None or self._vllm.longest < longest):
            self._vllm = None  # gives its memory back
            try:
                self._vllm = VllmEngine(self._vllm_folder, self._model.dtype, self._stops, longest)
            except Exception as error:  # whatever vLLM raises; its own words say what it wants
                if self._engine == "vllm":
                    raise InputError(
                        f"vLLM could not start: {class_and_text(error)}; take engine='transformers'"
                    ) from error
                warnings.warn(
                    f"vLLM could not start, so transformers writes the texts: {class_and_text(error)}", stacklevel=3
                )
                self._vllm_folder, self.shares_steps = None, supports_paging(self._model)
        return self._vllm

    def _write_group(
        self, group: PrefixGroup, waiting: list[_Row], batch_tokens: int, finish: Callable[[list[_Row]], None]
    ) -> None:
        """Write texts whose prompts share a prefix."""
        # Longest first: what does not fit in memory fails at once or never. From the end of the list it is cheap.
        waiting.sort(key=lambda row: (len(row.request.prompt) + row.limit, -row.index))
        most = [blocks_of(len(row.request.prompt) - group.prefix + row.limit) for row in waiting]
        blocks = min(max((batch_tokens - group.prefix) // BLOCK, most[-1]), sum(most))
        paged = PagedModel(self._model, blocks, waiting[0].request.prompt[: group.prefix])
        room = _Room(blocks * BLOCK, group.prefix, waiting)
        rows: list[_Row] = []
        while waiting or rows:
            done: list[_Row] = []
            while waiting and room.for_another(rows, waiting[-1]):
                rows.append(waiting.pop())
                # What was written before the row had to leave comes after its prompt.
                logits = paged.add([*rows[-1].request.prompt[group.prefix :], *rows[-1].ids])
                self._accept(paged, rows, logits, len(rows) - 1, done)
            while not paged.cache.can_step():  # a row leaves and comes again: the one that is read again soonest
                shortest = min(range(len(rows)), key=paged.cache.lengths.__getitem__)
                waiting.append(_take(rows, shortest, paged))
            if rows:
                logits = paged.step([row.ids[-1] for row in rows])
                self._accept(paged, rows, logits, 0, done)
            room.learn(done)
            finish(done)

    def _accept(self, paged: PagedModel, rows: list[_Row], logits: Tensor, first: int, done: list[_Row]) -> None:
        """Give the rows from ``first`` on their next token and take out those that it ends."""
        tokens = self._next(logits, rows[first:])
        ended = [first + i for i, token in enumerate(tokens) if rows[first + i].accept(token)]
        done += [_take(rows, number, paged) for number in reversed(ended)]  # so that no row moves before its turn

    def _write_alone(self, row: _Row) -> None:
        model = OneRow(self._model)
        tokens = row.request.prompt
        while not row.accept(self._next(model.step(tokens), [row])[0]):
            tokens = row.ids[-1:]

    def _next(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        tokens = next_tokens(logits, [row.sampler for row in rows])
        if tokens is None:
            raise not_finite(self._model, "logits")
        return tokens

    def _row(self, index: int, request: GenerationRequest) -> _Row:
        room = request.max_new_tokens if self._limit is None else self._limit - len(request.prompt)
        sampler = Sampler(request.temperature, request.top_p, request.seed, self._model.device)
        return _Row(index, request, min(room, request.max_new_tokens), sampler, self._stops, self._tokenizer)

    def _check(self, requests: Sequence[GenerationRequest], batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; a batch needs 1 token or more")
        for index, request in enumerate(requests):
            length = len(request.prompt)
            if not length:
                raise InputError(f"request {index}: its prompt has no token, so there is nothing to continue")
            if request.max_new_tokens < 1:
                raise InputError(f"request {index}: max_new_tokens is {request.max_new_tokens}; set it to 1 or more")
            if self._limit is not None and length >= self._limit:
                raise InputError(
                    f"request {index}: its prompt has {length} tokens and the model reads at most {self._limit} "
                    "(max_position_embeddings), so there is no room for an answer; shorten the prompt, for example "
                    "with fewer few-shot examples"
                )
            if not 0 <= request.temperature < float("inf"):
                raise InputError(f"request {index}: temperature is {request.temperature}; set it to 0 or more")
            if not 0 < request.top_p <= 1:
                raise InputError(f"request {index}: top_p is {request.top_p}; set it above 0 and at most to 1")


class _Row:
    """A text that is being written."""

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        limit: int,
        sampler: Sampler,
        stops: frozenset[int],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.index = index
        self.request = request
        self.limit = limit
        self.sampler = sampler
        self.ids: list[int] = []
        self._stops = stops
        self._tokenizer = tokenizer
        # A token has one byte of text or more, so a stop string that has just ended lies in so many last tokens.
        self._lookback = max((len(text.encode()) for text in request.stop), default=0)

    def accept(self, token: int) -> bool:
        """Take the next token.

        Returns:
            Whether the text is finished.
        """
        if token in self._stops:
            return True
        self.ids.append(token)
        if len(self.ids) == self.limit:
            return True
        if not self._lookback:
            return False
        # Special tokens are kept here: a stop string may be the text of one.
        tail = self._tokenizer.decode(self.ids[-self._lookback :])
        return any(text and text in tail for text in self.request.stop)

    def text(self) -> str:
        """What was written, cut as lm-eval cuts: at each stop string in turn."""
        text = str(self._tokenizer.decode(self.ids, skip_special_tokens=True))
        for stop in self.request.stop:
            if stop:
                text = text.split(stop)[0]
        return text


def _take(rows: list[_Row], number: int, paged: PagedModel) -> _Row:
    """Take a row out; the last one takes its number, as in the cache."""
    paged.cache.drop(number)
    taken, rows[number] = rows[number], rows[-1]
    rows.pop()
    return taken


class _Room:
    """Whether one more text fits beside those that are being written, by what texts came to so far."""

    def __init__(self, tokens: int, prefix: int, waiting: list[_Row]) -> None:
        self._tokens = tokens
        self._prefix = prefix
        # As if one text had been written to its limit; of all texts, the sum of tokens and that of their squares
        self._sum = max(row.limit for row in waiting)
        self._squares = self._sum**2

    def learn(self, done: list[_Row]) -> None:
        """Take in how long finished texts became."""
        self._sum += sum(len(row.ids) for row in done)
        self._squares += sum(len(row.ids) ** 2 for row in done)

    def for_another(self, rows: list[_Row], row: _Row) -> bool:
        """Whether ``row`` fits beside ``rows`` when each holds half of what one holds on average while it is written.

        Half: room that is left free costs more steps than the texts that have to leave and be read again.
        """
        written = self._squares // (4 * self._sum)
        wanted = 0
        for each in (*rows, row):
            prompt = len(each.request.prompt) - self._prefix
            wanted += BLOCK * blocks_of(prompt + max(len(each.ids), min(written, each.limit)))
        return not rows or wanted <= self._tokens
