"""Sengi: supervised fine-tuning for small language models, provably right and with evidence for the recipe.

    from sengi import resolve_recipe, train
    if __name__ == "__main__":
        result = train(resolve_recipe("recipe.yaml", overrides=["learning_rate=1e-5"]))

Names are imported on first use, so that ``import sengi`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Recipe": "sengi.recipe",
    "resolve_recipe": "sengi.recipe_sources",
    "resolve_model": "sengi.model.resolve",
    "train": "sengi.train.run",
    "Observer": "sengi.train.observer",
    "evaluate_questions": "sengi.evaluate.tasks",
    "write_report": "sengi.report.write",
    "write_world": "sengi.world.write",
    "SengiError": "sengi.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sengi' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
