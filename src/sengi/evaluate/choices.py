"""Multiple choice by likelihood: the choice that the model finds likeliest as its answer.

The user's turn is the question alone; each choice's text is scored as the beginning of the assistant's turn.
Lettered options are not shown: picking a letter is a skill of its own that small models lack, while the
likelihood of the text moves as soon as the fact is learned. Two scores come of the same numbers:

- per byte (the main one; lm-eval's ``acc_norm``): the sum of log-probabilities over the choice's UTF-8 bytes, so
  that a long choice is not punished for its length and tokenizers can be compared;
- sum (lm-eval's ``acc``): the plain sum.

The question is run once and its keys and values are used for all its choices. Questions are padded on the left and
choices on the right, so that every question and choice lie side by side whatever their neighbours' length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.evaluate.questions import Question
from sengi.inference.prompts import Prompts


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Log-likelihoods of one question's choices.

    Attributes:
        sums: natural log-probability of each choice's tokens, in the order of the choices.
        per_byte: the same over the UTF-8 bytes of the choice.
    """

    sums: tuple[float, ...]
    per_byte: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Task:
    """One question in tokens: the prefix that all choices share, and what each adds to it."""

    index: int
    prefix: list[int]
    choices: list[list[int]]

    @property
    def cost(self) -> int:
        """Tokens that the question occupies in a batch, before padding."""
        return len(self.prefix) + sum(map(len, self.choices))


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[ChoiceScores]:
    """Score every choice of every question.

    Args:
        model: in evaluation mode, with an attention function that takes a padding mask (``sdpa``, ``eager``).
        tokenizer: with a chat template.
        questions: all with ``choices``.
        batch_tokens: most tokens in one forward call, padding counted; one question is never split.
        progress: called with the number of questions that were scored.

    Returns:
        One entry a question, in the order given; it does not depend on the batches but for rounding.
    """
    prompts = Prompts(tokenizer)
    tasks = [_tokenize(prompts, index, question) for index, question in enumerate(questions)]
    results: dict[int, ChoiceScores] = {}
    for batch in _batches(tasks, batch_tokens):
        for task, sums in zip(batch, _score_batch(model, batch), strict=True):
            texts = questions[task.index].choices or ()
            per_byte = tuple(s / len(text.encode()) for s, text in zip(sums, texts, strict=True))
            results[task.index] = ChoiceScores(tuple(sums), per_byte)
        if progress:
            progress(len(batch))
    return [results[index] for index in range(len(tasks))]


def _tokenize(prompts: Prompts, index: int, question: Question) -> _Task:
    """Tokens of prompt and choice together, as in training, cut where the choices' sequences part from the prompt's.

    A tokenizer may join the end of the prompt with the start of a choice. The cut is then the last place where the
    prompt and all the choices agree, so that all choices are conditional on the same tokens.
    """
    prompt = prompts.question(question.question)
    prompt_ids = prompts.ids(prompt)
    whole = [prompts.ids(prompt + choice) for choice in question.choices or ()]
    cut = min(_common_prefix(prompt_ids, ids) for ids in whole)
    # One token at least must be left to predict from, and one of every choice to predict.
    cut = max(1, min(cut, *(len(ids) - 1 for ids in whole)))
    return _Task(index, prompt_ids[:cut], [ids[cut:] for ids in whole])


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _batches(tasks: list[_Task], batch_tokens: int) -> list[list[_Task]]:
    """Questions of like length together, longest first: the largest batch comes first and fails first."""
    batches: list[list[_Task]] = []
    width = rows = longest = 0
    for task in sorted(tasks, key=lambda task: (-task.cost, task.index)):
        width, rows = max(width, len(task.prefix)), rows + len(task.choices)
        longest = max(longest, max(map(len, task.choices)))
        size = len(batches[-1]) + 1 if batches else 1
        if not batches or max(size * width, rows * (width + longest)) > batch_tokens:
            batches.append([])
            width, rows, longest = len(task.prefix), len(task.choices), max(map(len, task.choices))
        batches[-1].append(task)
    return batches


@torch.inference_mode()
def _score_batch(model: PreTrainedModel, batch: list[_Task]) -> list[list[float]]:
    """Sums of log-probabilities of the choices, one list a question.

    Suffixes: B questions, R choices of all of them, P prefix tokens, C choice tokens, V vocabulary.
    """
    device = model.device
    width = max(len(task.prefix) for task in batch)
    prefix_BP = torch.zeros(len(batch), width, dtype=torch.long)
    mask_BP = torch.zeros(len(batch), width, dtype=torch.long)
    for row, task in enumerate(batch):
        prefix_BP[row, width - len(task.prefix) :] = torch.tensor(task.prefix)
        mask_BP[row, width - len(task.prefix) :] = 1
    output = model(
        input_ids=prefix_BP.to(device),
        attention_mask=mask_BP.to(device),
        position_ids=(mask_BP.cumsum(1) - 1).clamp(min=0).to(device),
        use_cache=True,
        logits_to_keep=1,
    )
    owner_R = torch.tensor([row for row, task in enumerate(batch) for _ in task.choices])
    choices = [ids for task in batch for ids in task.choices]
    first_R = torch.tensor([ids[0] for ids in choices], device=device)
    log_probs_BV = output.logits[:, -1].float().log_softmax(-1)
    sums_R = log_probs_BV[owner_R.to(device), first_R].double()
    if max(map(len, choices)) > 1:
        output.past_key_values.batch_select_indices(owner_R.to(device))
        sums_R = sums_R + _score_rest(model, choices, mask_BP[owner_R], output.past_key_values)
    sums = iter(sums_R.tolist())
    return [[next(sums) for _ in task.choices] for task in batch]


def _score_rest(model: PreTrainedModel, choices: list[list[int]], mask_RP: Tensor, cache: object) -> Tensor:
    """Log-probability of every token of each choice after its first, summed: shape (R,), float64."""
    length = max(map(len, choices)) - 1
    inputs_RC = torch.zeros(len(choices), length, dtype=torch.long)
    targets_RC = torch.zeros(len(choices), length, dtype=torch.long)
    mask_RC = torch.zeros(len(choices), length, dtype=torch.long)
    for row, ids in enumerate(choices):
        inputs_RC[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.long)
        targets_RC[row, : len(ids) - 1] = torch.tensor(ids[1:], dtype=torch.long)
        mask_RC[row, : len(ids) - 1] = 1
    device = model.device
    logits_RCV = model(
        input_ids=inputs_RC.to(device),
        attention_mask=torch.cat([mask_RP, mask_RC], dim=1).to(device),
        position_ids=(mask_RP.sum(1, keepdim=True) + torch.arange(length)).to(device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    chosen_RC = logits_RCV.gather(-1, targets_RC.to(device).unsqueeze(-1)).squeeze(-1)
    # Not log_softmax: it would hold a second tensor of the size of the logits, the largest one here.
    log_probs_RC = chosen_RC.double() - logits_RCV.float().logsumexp(-1).double()
    return (log_probs_RC * mask_RC.to(device)).sum(1)
