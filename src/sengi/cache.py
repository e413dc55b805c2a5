"""Where things are kept that can be made again: token stores, converted models, answers of unfinished evaluations."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SENGI_CACHE``, else ``~/.cache/sengi``; it may not be there yet."""
    return Path(os.environ.get("SENGI_CACHE") or "~/.cache/sengi").expanduser()
