"""lm-eval's model class over Sengi's engines: ``--model sengi``.

Texts become tokens exactly as lm-eval's own ``hf`` class makes them (``HFLM`` of 0.4.13), so that scores are equal;
tokens become log-likelihoods and texts in :mod:`sengi.inference`. Two things differ on purpose, and both are listed:
``truncated`` names every question that lost tokens on the left (hf only logs a line), and ``excluded`` names those
that cannot be scored at all (hf stops with an assertion). A chat template that prints today's date gets a fixed one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import InputError
from sengi.harness.answering import Answering, Done, Progress, Tell, progress_bar
from sengi.harness.generation_arguments import fit_prompt, read_arguments, sampling_seed
from sengi.harness.lm_eval_api import (
    Instance,
    get_rolling_token_windows,
    make_disjoint_window,
    register_model,
)
from sengi.harness.loading import LoadedModel, load_for_scoring
from sengi.harness.ranks import Alone, Ranks, join_ranks
from sengi.harness.response_cache import ResponseCache, request_key
from sengi.harness.text_lm import TextLM
from sengi.harness.unscored import Excluded, Truncated, Unscored
from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.loglikelihood import Scorer


@register_model("sengi")
class SengiLM(TextLM):
    """A causal language model for lm-eval.

    Args:
        pretrained: a model folder, a LoRA adapter folder, a name that `resolve_model` knows, or a loaded model.
        tokenizer: a folder or a loaded tokenizer; None takes the model's own.
        peft: a LoRA adapter folder to put on ``pretrained``.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``auto``; None is float32 on the CPU and auto elsewhere.
        device: None takes CUDA where there is one, else the CPU.
        batch_tokens: tokens at a time: of a forward call, or kept while texts are written; None leaves it to the
            :class:`Scorer` and the :class:`Generator`.
        max_length: context in tokens; None asks the model's configuration, as hf does.
        add_bos_token: put a bos token before every text; None leaves it to the tokenizer.
        trust_remote_code: run the code of the model's author.
        cache: folder of known answers; an interrupted evaluation continues from it.
        seed: of drawn answers.
        progress: called with (answered, all, kind); None shows a bar as lm-eval's own classes do.
        ranks: the processes that share the work; None joins those that torchrun started (a loaded model stays alone).
        batch_size: lm-eval's command line gives it; has no effect, see ``batch_tokens``.
        max_batch_size: likewise.

    Attributes:
        truncated: questions that were cut, one entry a question and kind, with the most tokens cut.
        excluded: questions without an answer.
        answering: counts answers that were computed and that the cache knew.

    Raises:
        InputError: an option cannot be, or the cache is asked for with a model that is not from a folder.
        ModelError: the model, tokenizer or adapter cannot be loaded.

    Example:
        ``python -m sengi.harness run --model sengi --model_args pretrained=FOLDER --tasks arc_easy``
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        peft: str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        trust_remote_code: bool = False,
        cache: str | Path | None = None,
        seed: int = 1234,
        progress: Progress | None = None,
        ranks: Ranks | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens={batch_tokens}: a forward call needs 1 token or more")
        if ranks is None:
            ranks = Alone() if isinstance(pretrained, PreTrainedModel) else join_ranks()
        options: dict[str, Any] = {"peft": peft, "tokenizer": tokenizer, "dtype": dtype, "device": device}
        options["trust_remote_code"] = trust_remote_code
        found: list[LoadedModel] = []
        ranks.together(lambda: found.append(load_for_scoring(pretrained, **options)))  # if one cannot, none goes on
        loaded = found[0]
        super().__init__(loaded.model, loaded.tokenizer, max_length, add_bos_token)
        if add_bos_token is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
            self.tokenizer.add_bos_token = add_bos_token  # hf gives it to from_pretrained
        self._device = self.model.device
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._progress = progress
        self._facts, self._folder = loaded.facts, loaded.folder
        self._ranks = ranks
        self.answering = Answering(self._open_cache(cache), ranks)
        self._unscored = Unscored()

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> SengiLM:
        """Make a model as lm-eval's command line does; what ``--model_args`` says counts.

        Args:
            arg_dict: arguments of this class.
            additional_config: lm-eval's own options. Its command line says ``device="cuda:0"`` where the user said
                nothing, which would put all processes on one GPU: it is taken as no wish.
        """
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if more.get("device") == "cuda:0":
            del more["device"]
        return cls(**more | arg_dict)

    def _open_cache(self, root: str | Path | None) -> ResponseCache | None:
        if root is None:
            return None
        if self._facts is None:
            raise InputError(
                f"cache={root}: a loaded model has no fingerprint to keep its answers under; give its folder"
            )
        return ResponseCache(Path(root), self._facts, self._ranks.rank)

    @property
    def batch_size(self) -> int | str:
        """Tokens at a time; lm-eval prints it."""
        return "auto" if self._batch_tokens is None else self._batch_tokens

    @property
    def truncated(self) -> list[Truncated]:
        """Questions that lost tokens on the left."""
        return self._unscored.truncated

    @property
    def excluded(self) -> list[Excluded]:
        """Questions that cannot be scored; whoever aggregates must leave them out."""
        return self._unscored.excluded

    def get_model_info(self) -> dict[str, Any]:
        """Facts of the model for lm-eval's results file."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": "",
            "model_sha": "",
            "sengi_model": self._facts,
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, in nats, and whether it is the greedy one.

        Args:
            requests: instances with (context, continuation).
            disable_tqdm: no progress bar.
        """
        encoded = []
        for request in requests:
            context, continuation = self.encode_request(*request.args)
            over = len(context) + len(continuation) - (self.max_length + 1)
            if reason := self._unscorable(continuation):
                self._unscored.leave_out(request, reason)
            elif over > 0:
                self._unscored.cut(request, over)
            encoded.append((request.args, context, continuation))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _unscorable(self, continuation: Sequence[int]) -> str:
        if not continuation:
            return "the continuation has no tokens of its own"
        if len(continuation) > self.max_length:
            return f"the continuation alone is longer than the context of {self.max_length} tokens"
        return ""

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Score token ids; what is longer than the context loses its left end. NaN where nothing can be scored."""
        results = [(float("nan"), False)] * len(requests)
        places, pairs = [], []
        for place, (_, context, continuation) in enumerate(requests):
            if not self._unscorable(continuation):
                room = self.max_length + 1 - len(continuation)
                places.append(place)
                pairs.append((context if len(context) <= room else context[-room:], continuation))

        def compute(share: list[int], done: Done) -> None:
            self._scorer.score(
                [pairs[i] for i in share],
                batch_tokens=self._batch_tokens,
                on_scored=lambda indices, found: done(
                    [share[i] for i in indices], [[one.sum, one.is_greedy] for one in found]
                ),
            )

        keys = [request_key(self._facts or {}, "loglikelihood", pair, {}) for pair in pairs]
        with self._bar("loglikelihood", disable_tqdm) as tell:
            answers = self.answering.answer(keys, lambda i: [*pairs[i][0], *pairs[i][1]], compute, tell)
        for place, (total, is_greedy) in zip(places, answers, strict=True):
            results[place] = (float(total), bool(is_greedy))
            if (texts := requests[place][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[place])
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in nats; longer than the context, in windows that predict each token once.

        Args:
            requests: instances with (text,).
            disable_tqdm: no progress bar.
        """
        windows: list[tuple[None, list[int], list[int]]] = []
        owner: list[int] = []
        for place, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix(),
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in rolling:
                windows.append((None, *make_disjoint_window(window)))
                owner.append(place)
        totals = [0.0] * len(requests)
        for place, (total, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[place] += total
        for request, answer in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that the model writes after each context, up to and without what ends it.

        Args:
            requests: instances with (context, generation arguments).
            disable_tqdm: no progress bar.

        Raises:
            InputError: an argument is not supported, or leaves no room for the prompt.
        """
        eos = None if self.eot_token_id is None else self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        written: list[GenerationRequest] = []
        keys: list[str] = []
        asked: Counter[str] = Counter()
        for request in requests:
            context, given = request.args
            arguments = read_arguments(given, self.max_gen_toks, eos, str(request.task_name))
            place = f"task {request.task_name}, question {request.doc_id}"
            prompt, new_tokens, cut = fit_prompt(self.prompt_ids(context), arguments, self.max_length, place)
            if cut:
                self._unscored.cut(request, cut)
            said: dict[str, Any] = {"max_new_tokens": new_tokens, "stop": arguments.stop}
            if arguments.sampled:
                said |= {"temperature": arguments.temperature, "top_p": arguments.top_p}
                name = request_key({}, "generate", [prompt], said)
                said["seed"] = sampling_seed(self._seed, name, asked[name])
                asked[name] += 1
            written.append(GenerationRequest(prompt, **said))
            keys.append(request_key(self._facts or {}, "generate", [prompt], said))

        def compute(share: list[int], done: Done) -> None:
            self._generator.generate(
                [written[i] for i in share],
                batch_tokens=self._batch_tokens,
                on_generated=lambda indices, texts: done([share[i] for i in indices], texts),
            )

        with self._bar("generate_until", disable_tqdm) as tell:
            texts = self.answering.answer(keys, lambda i: written[i].prompt, compute, tell)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.model)

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.model, self.tokenizer, folder=self._folder)

    def _bar(self, kind: str, disable_tqdm: bool) -> AbstractContextManager[Tell]:
        return progress_bar(self._progress, kind, hidden=disable_tqdm or self._ranks.rank != 0)
