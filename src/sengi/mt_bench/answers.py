"""The model answers both turns of every question; the second turn sees the model's own first answer."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.prompts import Prompts, folder_stop_ids
from sengi.model.adapters import config_folder, is_adapter
from sengi.model.context import folder_context_length
from sengi.model.inspect import inspect_model_folder
from sengi.model.load import load_model, load_tokenizer, model_fingerprint
from sengi.mt_bench.cache import Cache, RowFile, key_of
from sengi.mt_bench.files import TURNS, BenchQuestion, QuestionId
from sengi.mt_bench.names import claim_name
from sengi.mt_bench.options import MAX_NEW_TOKENS

# temperature_config of FastChat's common.py; 0.7 for categories that it does not name
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
OTHER_TEMPERATURE = 0.7


@dataclass
class Answered:
    """What the model said.

    Attributes:
        model_name: names the model in FastChat's files.
        answers: both answers by question id; a question without room in the context has none.
        excluded: question id -> why it has no answers.
        shortened: question ids of which an answer had less room than ``MAX_NEW_TOKENS``.
        notes: what a reader must know.
    """

    model_name: str
    answers: dict[QuestionId, tuple[str, ...]] = field(default_factory=dict)
    excluded: dict[QuestionId, str] = field(default_factory=dict)
    shortened: set[QuestionId] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def answer_bench(
    model_folder: Path,
    questions: Sequence[BenchQuestion],
    output: Path,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Answered:
    """Answer every question, or read what this model answered before.

    Args:
        model_folder: loaded in float32, on the GPU if there is one, and only if an answer is missing.
        questions: two turns each.
        output: answers go to ``model_answer/<model>.jsonl`` as FastChat writes them.
        batch_tokens: tokens that are kept at a time while texts are written; None: as many as pay on the device.
        progress: called with (turns answered, turns in all, what).

    Raises:
        ModelError: the model or its tokenizer cannot be used.
    """
    inspect_model_folder(config_folder(model_folder))
    fingerprint = model_fingerprint(model_folder)
    name, notes = claim_name(output / "model_answer", model_folder, fingerprint)
    answered = Answered(name, notes=notes)
    with contextlib.closing(Cache(output / "cache" / "answers" / f"{name}.jsonl")) as cache:
        ours = {(question.id,) for question in questions}
        with contextlib.closing(RowFile(output / "model_answer" / f"{name}.jsonl", ours, ("question_id",))) as rows:
            asking = _Asking(model_folder, fingerprint, cache, batch_tokens, progress, answered)
            first: dict[QuestionId, dict[str, Any]] = {}
            asking.turn(questions, [()] * len(questions), lambda question, row: first.update({question.id: row}))
            kept = [question for question in questions if question.id in first]

            def keep(question: BenchQuestion, row: dict[str, Any]) -> None:
                both = (first[question.id], row)
                answered.answers[question.id] = tuple(turn["text"] for turn in both)
                rows.append(_fastchat_row(question, name, both))

            asking.turn(kept, [(first[question.id]["text"],) for question in kept], keep)
    return answered


class _Asking:
    """One model and the questions to it; the model is loaded when the first answer is missing."""

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        cache: Cache,
        batch_tokens: int | None,
        progress: Callable[[int, int, str], None] | None,
        answered: Answered,
    ) -> None:
        self._folder, self._fingerprint, self._cache = folder, fingerprint, cache
        self._batch_tokens, self._progress, self._answered = batch_tokens, progress, answered
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
        self._prompts = Prompts(self._tokenizer)
        self._stops = folder_stop_ids(config_folder(folder), self._tokenizer)
        self._context = folder_context_length(folder)
        self._generator: Generator | None = None
        self._done = self._total = 0

    def turn(
        self,
        questions: Sequence[BenchQuestion],
        earlier: Sequence[tuple[str, ...]],
        on_answer: Callable[[BenchQuestion, dict[str, Any]], None],
    ) -> None:
        """The next turn of each question, all in one call; those that do not fit the context are noted.

        Args:
            questions: what is asked.
            earlier: the model's own answers to the turns before, one tuple a question.
            on_answer: called with the question and its row of the cache, as soon as it is there.
        """
        self._total = self._total or TURNS * len(questions)
        missing: list[tuple[BenchQuestion, GenerationRequest]] = []
        for question, answers in zip(questions, earlier, strict=True):
            request = self._request(question, answers)
            if request is None:
                self._count(TURNS - len(answers))
            elif (key := self._key(request)) in self._cache:
                on_answer(question, self._cache[key])
                self._count(1)
            else:
                missing.append((question, request))

        def keep(indices: Sequence[int], texts: Sequence[str]) -> None:
            for index, text in zip(indices, texts, strict=True):
                question, request = missing[index]
                # FastChat strips answers too, before the second turn sees them.
                facts = {"question_id": question.id, "turn": len(earlier[0]) + 1, "text": text.strip()}
                on_answer(question, self._cache.add(self._key(request), **facts))
            self._count(len(indices))

        if missing:
            requests = [request for _, request in missing]
            self._load().generate(requests, batch_tokens=self._batch_tokens, on_generated=keep)

    def _request(self, question: BenchQuestion, answers: tuple[str, ...]) -> GenerationRequest | None:
        """The prompt for the next turn; None where the context has no room for an answer."""
        turn = len(answers) + 1
        ids = self._ids(question, answers)
        room = self._room(question, answers, len(ids))
        if room < 1:
            self._answered.excluded[question.id] = f"no room for an answer to turn {turn} in the model's context"
            return None
        if room < MAX_NEW_TOKENS:
            self._answered.shortened.add(question.id)
        temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
        return GenerationRequest(ids, room, temperature=temperature, seed=_seed(question.id, turn))

    def _ids(self, question: BenchQuestion, answers: tuple[str, ...]) -> list[int]:
        """The conversation up to the next answer, as the model's template writes it."""
        messages = [{"role": "user", "content": question.turns[0]}]
        for answer, following in zip(answers, question.turns[1:], strict=False):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
        return self._prompts.ids(self._prompts.text(messages))

    def _room(self, question: BenchQuestion, answers: tuple[str, ...], prompt: int) -> int:
        """Tokens that the next answer may have; the first leaves half of what there is to the second.

        A model that does not stop would else fill a small context in turn 1, and its worst questions be left out.
        """
        if self._context is None:
            return MAX_NEW_TOKENS
        left = self._context - prompt
        if not answers:
            left = min(left, (self._context - len(self._ids(question, ("-",)))) // 2)
        return min(MAX_NEW_TOKENS, left)

    def _key(self, request: GenerationRequest) -> str:
        settings = [request.max_new_tokens, request.temperature, request.top_p, request.seed]
        return key_of(self._fingerprint, request.prompt, settings, self._stops)

    def _load(self) -> Generator:
        if self._generator is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model: Any = load_model(self._folder, dtype=torch.float32)
            whole = None if is_adapter(self._folder) else self._folder  # for vLLM, which loads it again
            self._generator = Generator(model.to(device), self._tokenizer, folder=whole)
        return self._generator

    def _count(self, turns: int) -> None:
        self._done += turns
        if self._progress is not None and turns:
            self._progress(self._done, self._total, "mt_bench answers")


def _seed(number: QuestionId, turn: int) -> int:
    """A seed of its own for each turn, the same for every model; with one for all, all would draw alike."""
    return int.from_bytes(hashlib.sha256(f"{number} {turn}".encode()).digest()[:4], "big") >> 1


def _fastchat_row(question: BenchQuestion, name: str, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An answer as FastChat's gen_model_answer.py writes it."""
    return {
        "question_id": question.id,
        "answer_id": key_of(*(turn["key"] for turn in turns))[:22],
        "model_id": name,
        "choices": [{"index": 0, "turns": [turn["text"] for turn in turns]}],
        "tstamp": turns[-1]["tstamp"],
    }
