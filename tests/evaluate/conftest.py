"""Shared with tests/model: the tiny chat model (``tiny_folder``)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and a ChatML tokenizer, as a folder."""
    from tiny_folder import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("chat") / "tiny")
