"""``sengi data tokens``: each sample's tokens, the supervised ones in colour."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from sengi.conversation import Conversation, Sample

SHOWN = 5  # samples that a person looks at
SUPERVISED = "bold black on green"


def tokens(file: str, *, model: str, limit: int | None = None, json: bool = False) -> None:
    """Show the tokens of the first samples of a data file: supervised ones in colour, the others dim.

    Parameters
    ----------
    file
        Data file, folder, or id of a hub dataset.
    model
        Model whose tokenizer and chat template are used: a folder, hub id, GGUF file or known name.
    limit
        Samples to show; 5 if not given, with --json all.
    json
        Print one JSON line a sample instead: input_ids and loss_mask (1: supervised).
    """
    from sengi.cli.console import err, out
    from sengi.errors import MaskError, RecipeError
    from sengi.masks.masker import Masker
    from sengi.model.load import load_tokenizer
    from sengi.model.resolve import resolve_model

    if limit is None:
        limit = sys.maxsize if json else SHOWN
    if limit < 1:
        raise RecipeError(f"--limit {limit}: must be at least 1")
    tokenizer = load_tokenizer(resolve_model(model))
    masker = Masker(tokenizer)
    for note in () if json else masker.notes:
        out.print(f"note: {note}", style="yellow", markup=False)
    for conversation in _first(file, limit):
        try:
            sample = masker.sample(conversation)
        except MaskError as error:  # training leaves it out and counts it, too
            err.print(f"left out: {error}", markup=False)
            continue
        if json:
            row = {"input_ids": sample.input_ids.tolist(), "loss_mask": sample.loss_mask.tolist()}
            print(json_module.dumps(row))
            continue
        title = f"{conversation.place}  {len(sample.input_ids)} tokens, {sample.num_supervised} supervised"
        out.rule(printable(title), style="dim")
        out.print(coloured(sample, tokenizer))


def printable(text: str) -> str:
    """Text without characters that steer a terminal: control characters and format marks are written as escapes.

    New lines stay, behind a visible mark, because people read samples by lines.
    """
    shown = []
    for character in text:
        if character == "\n":
            shown.append("⏎\n")
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return "".join(shown)


def coloured(sample: Sample, tokenizer: Any) -> Text:
    """The decoded text of a sample, supervised tokens highlighted.

    Tokens of equal mask are decoded together, so characters made of several tokens stay whole.
    """
    from rich.text import Text

    text = Text()
    edges = [0, *(i for i in range(1, len(sample.loss_mask)) if sample.loss_mask[i] != sample.loss_mask[i - 1])]
    for first, last in zip(edges, [*edges[1:], len(sample.loss_mask)], strict=True):
        piece = tokenizer.decode(sample.input_ids[first:last].tolist(), skip_special_tokens=False)
        text.append(printable(piece), style=SUPERVISED if sample.loss_mask[first] else "dim")
    return text


def _first(file: str, limit: int) -> Iterator[Conversation]:
    """The first conversations of a file or folder.

    Raises:
        RowError: one of them cannot be read.
    """
    from sengi.cli.console import err
    from sengi.data.files import find_files
    from sengi.data.formats import read_conversations
    from sengi.data.rows import NOTHING_TO_LEARN, RowError

    left = limit
    for path in find_files(file):
        for row in read_conversations(path):
            if isinstance(row, RowError):
                if row.reason not in NOTHING_TO_LEARN:
                    raise row
                err.print(f"left out: {row}", markup=False)
                continue
            yield row
            left -= 1
            if not left:
                return
