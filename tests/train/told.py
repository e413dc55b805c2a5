"""A run in this process, what it tells, and what its checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sengi.recipe_sources import resolve_recipe
from sengi.train.observer import Observer
from sengi.train.run import train


class Told(Observer):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.scored: list[tuple[int, str]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def evaluated(self, step: int, scores: list[dict[str, Any]]) -> None:
        self.scored.append((step, scores[0]["task"]))


def start(values: dict[str, Any]) -> Told:
    """Start or continue the run of these recipe keys."""
    told = Told()
    train(resolve_recipe(values=values), told)
    return told


def state(checkpoint: Path) -> dict[str, bytes]:
    """Weights, master weights, both moments and their layout of a checkpoint; not the card, it names the folder."""
    files = {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name.endswith((".safetensors", "layout.json"))}
