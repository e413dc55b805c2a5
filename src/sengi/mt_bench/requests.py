"""Which judgements are asked for, and what names each of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sengi.mt_bench.cache import key_of
from sengi.mt_bench.files import Bench, BenchQuestion, QuestionId
from sengi.mt_bench.options import JUDGE_MAX_TOKENS, JUDGE_TEMPERATURE, MTBenchOptions
from sengi.mt_bench.prompts import JudgePrompt

Answers = dict[QuestionId, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Request:
    """One judgement to ask for.

    Attributes:
        question: which question.
        turn: 1 or 2.
        repeat: 0 for the judgement that counts, 1 for the one that measures the judge's noise.
        prompt: the judge prompt, before it is filled.
        user_prompt: the filled one.
        key: names everything that decides the judgement.
    """

    question: BenchQuestion
    turn: int
    repeat: int
    prompt: JudgePrompt
    user_prompt: str
    key: str


def plan_requests(bench: Bench, answers: Answers, options: MTBenchOptions) -> list[Request]:
    """Every judgement to make: both turns of each answered question, then the repeated share.

    Args:
        bench: questions and prompts.
        answers: both turns' answers by question id; questions without are left out.
        options: judge and share to repeat.
    """
    first = [
        _request(bench, question, turn, 0, answers[question.id], options)
        for question in bench.questions
        if question.id in answers
        for turn in (1, 2)
    ]
    chosen = set(choose_repeats([(request.question.id, request.turn) for request in first], options.repeat_share))
    again = [
        _request(bench, request.question, request.turn, 1, answers[request.question.id], options)
        for request in first
        if (request.question.id, request.turn) in chosen
    ]
    return first + again


def choose_repeats(turns: Sequence[tuple[QuestionId, int]], share: float) -> list[tuple[QuestionId, int]]:
    """The turns that are judged twice: the same ones for every model and every run.

    Args:
        turns: (question id, turn).
        share: 0 to 1; rounded up to whole turns.
    """
    order = sorted(turns, key=lambda turn: hashlib.sha256(f"{turn[0]} {turn[1]}".encode()).digest())
    return order[: math.ceil(share * len(turns))]


def _request(
    bench: Bench, question: BenchQuestion, turn: int, repeat: int, answers: Sequence[str], options: MTBenchOptions
) -> Request:
    prompt = bench.prompt(question, turn)
    user_prompt = prompt.fill(question.turns, answers, question.reference)
    # The address belongs to the key: two endpoints may serve different models under one name.
    judge = [options.judge_base_url, options.judge_model, JUDGE_TEMPERATURE, JUDGE_MAX_TOKENS]
    return Request(
        question, turn, repeat, prompt, user_prompt, key_of(judge, prompt.messages(user_prompt), turn, repeat)
    )
