"""A written world read back, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi.world.facts import World
from sengi.world.write import WorldSummary

PHASES = ("knowledge", "skills", "instruction")


@dataclass
class Written:
    """A world on disk, read back."""

    out: Path
    summary: WorldSummary
    world: World
    train: dict[str, list[dict[str, Any]]]
    answer: list[dict[str, Any]]
    choice: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    description: dict[str, Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        for phase in PHASES:
            yield from self.train[phase]

    def user_turns(self) -> set[str]:
        return {m["content"] for row in self.rows() for m in row["messages"] if m["role"] == "user"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
