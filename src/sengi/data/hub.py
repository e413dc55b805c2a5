"""Data sets on the Hugging Face Hub, downloaded by id."""

from __future__ import annotations

import re
from pathlib import Path

from sengi.data.rows import printable
from sengi.errors import DataError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_hub_id(path: str, suffix: str) -> bool:
    """Return whether ``path``, which is no file, can be meant as ``org/name`` on the Hub.

    Args:
        path: as the user wrote it.
        suffix: the data suffix of its name, if it has one: then a file was meant.
    """
    return not suffix and _ID.fullmatch(path) is not None and not Path(path).parent.is_dir()


def download(dataset: str, suffixes: tuple[str, ...]) -> Path:
    """Download the data files of a dataset (once; later calls find them in the cache).

    The environment decides where from: ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN``.

    Args:
        dataset: ``org/name``.
        suffixes: endings of the files wanted.

    Returns:
        The local folder.

    Raises:
        DataError: unknown, private, gated, or not reachable.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    place = f"{printable(dataset, 200)}: no such file, and the hub dataset of that name"
    try:
        patterns = [f"*{suffix}" for suffix in suffixes]
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=patterns))
    except GatedRepoError:
        raise DataError(f"{place} asks for consent; accept its terms on its page and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise DataError(f"{place} does not exist or is private; check the name, or set HF_TOKEN") from None
    except LocalEntryNotFoundError:
        cure = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or name a local folder"
        raise DataError(f"{place} is not in the cache and the hub cannot be reached; {cure}") from None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        text = printable(" ".join(str(error).split()), 150)
        raise DataError(f"{place} cannot be downloaded ({text}); name a local folder instead") from None
