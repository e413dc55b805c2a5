"""Held-out loss of a model in a folder: conversations it was not trained on, masked and packed as in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sengi.data.files import read_rows, split_suffix
from sengi.data.rows import RowError
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import open_store
from sengi.evaluate.heldout import heldout_items, heldout_losses, heldout_scores
from sengi.evaluation import Evaluation
from sengi.model.context import folder_context_length
from sengi.model.load import load_model, load_tokenizer
from sengi.model.supervised import prepare, try_on_device
from sengi.recipe import DataEntry, Recipe

MAX_LENGTH = int(Recipe.model_fields["max_length"].default)  # what a recipe takes that names no other
PACK_TOKENS = 4096


def evaluate_heldout(
    model_folder: Path, files: Sequence[Path], *, batch_tokens: int | None = None, max_length: int | None = None
) -> Evaluation:
    """Mean negative log-likelihood of the supervised tokens of each file, in nats a token.

    Args:
        model_folder: a model or checkpoint folder with a chat template.
        files: conversations in any format that training reads; each is a task named ``heldout_<stem>``.
        batch_tokens: tokens a pack may hold; without it 4,096.
        max_length: longest conversation in tokens, as the model was trained; None: as a recipe has it by default.
            Never more than the model's context.

    Returns:
        Scores by source and phase; what was dropped (too long, nothing to learn) is in ``excluded``, and a note says
        how many were too long for what.

    Raises:
        SengiError: a file or the model cannot be used.
    """
    started = time.perf_counter()
    limit, why = max_length or MAX_LENGTH, "max_length" + (" of the run" if max_length else "")
    context = folder_context_length(model_folder)
    if context is not None and context < limit:
        limit, why = context, "the model's context"
    options, tokenizer = StoreOptions(limit, "drop"), load_tokenizer(model_folder)
    stores = [(file, open_store([DataEntry(path=str(file))], tokenizer, options)) for file in files]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = prepare(load_model(model_folder, dtype=torch.float32)).to(device)
    try_on_device(model, device)
    evaluation = Evaluation()
    for file, store in stores:
        task = f"heldout_{split_suffix(file)[0]}"
        sums = heldout_losses(model, store, batch_tokens or PACK_TOKENS, 0, 1, device, lambda values: values)
        evaluation.scores += [{**row, "task": task} for row in heldout_scores(store, sums)]
        evaluation.items += [{**item, "task": task} for item in heldout_items(store, sums)]
        dropped = _dropped(store)
        for row in dropped:  # one reason for all that are too long, so that they can be counted
            reason = f"longer than {why}, {limit:,} tokens" if row["reason"] == "overlong" else row["message"]
            evaluation.excluded.append({"task": task, "id": row["place"], "reason": reason})
        if count := sum(row["reason"] == "overlong" for row in dropped):
            evaluation.notes.append(
                f"{task}: {count:,} of {count + len(store):,} conversations are longer than {why}, {limit:,} tokens, "
                "and left out: the loss is that of the shorter ones"
            )
    evaluation.seconds = time.perf_counter() - started
    return evaluation


def _dropped(store: TokenStore) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for _, row in read_rows(store.path / "dropped.jsonl") if store.meta["dropped"] else ():
        if isinstance(row, RowError):
            raise row
        rows.append(row)
    return rows
