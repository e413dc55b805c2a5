"""What IFEval needs beside its rows: NLTK's Punkt parameters, which lm-eval downloads when its code is imported."""

from __future__ import annotations

import functools
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sengi.errors import InputError

RESOURCE = "tokenizers/punkt_tab/english/"
SOURCE = ("raw.githubusercontent.com", 443)  # NLTK's downloads come from there
TIMEOUT_SECONDS = 3.0
# A Punkt model in NLTK's layout that was trained on nothing: it knows no abbreviation.
UNTRAINED = ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab")
# The only instructions whose check asks Punkt.
AFFECTED = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})


def prepare_punkt(data_root: Path | None) -> bool:
    """Let IFEval's code find a Punkt model, so that its own download, which knows no time limit, never starts.

    Looked for in this order: ``DATA_ROOT/nltk_data``, NLTK's usual folders, a download, and last a model that was
    trained on nothing: it ends a sentence after "Dr." and "e.g." too.

    Args:
        data_root: the folder of local files, if there is one.

    Returns:
        Whether the model is the untrained one.

    Raises:
        InputError: NLTK is not installed.
    """
    try:
        import nltk
    except ImportError:
        raise InputError("IFEval needs NLTK, which is not installed; pip install 'sengi[eval]'") from None
    if data_root is not None and (folder := data_root.absolute() / "nltk_data").is_dir():
        nltk.data.path.insert(0, str(folder))
    untrained = untrained_folder()
    nltk.data.path[:] = [path for path in nltk.data.path if path != untrained]
    if _found(nltk.data):
        return False
    if _reachable() and nltk.download("punkt_tab", quiet=True) and _found(nltk.data):
        return False
    nltk.data.path.append(untrained)
    return True


def punkt_note(questions: Iterable[Mapping[str, Any]]) -> str:
    """Return the sentence for readers of scores that an untrained Punkt model had a part in.

    Args:
        questions: IFEval's rows.
    """
    rows = list(questions)
    affected = sum(not AFFECTED.isdisjoint(row["instruction_id_list"]) for row in rows)
    return (
        f"{affected} of {len(rows)} questions count sentences; NLTK's punkt_tab was not found, so a sentence "
        "also ends after 'Dr.' or 'e.g.'. For the exact scores put punkt_tab under nltk_data/tokenizers of --data-root"
    )


@functools.cache
def untrained_folder() -> str:
    """Return a folder for NLTK's search path with a Punkt model that was trained on nothing."""
    folder = Path(tempfile.mkdtemp(prefix="sengi-nltk-"))
    model = folder / RESOURCE
    model.mkdir(parents=True)
    for name in UNTRAINED:
        (model / name).write_text("", encoding="utf-8")
    return str(folder)


def _found(data: Any) -> bool:
    try:
        data.find(RESOURCE)
    except LookupError:
        return False
    return True


def _reachable() -> bool:
    try:
        socket.create_connection(SOURCE, timeout=TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True
