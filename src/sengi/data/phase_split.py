"""Which sample belongs to which phase: by the names that data entries or rows give, or by a split of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from sengi.data.columns import Value
from sengi.data.plan import Int64s, sample_keys
from sengi.data.store import TokenStore
from sengi.errors import DataError, RecipeError
from sengi.recipe_parts import BY_LENGTH, BY_PHASE, Phases

MOST = 64  # phases; a column with more names is an id, not a phase
_TIES = 0x71E5  # with the seed decides which of equal numbers come first


def split_samples(
    phases: Phases, store: TokenStore, seed: int, column: Callable[[str], Sequence[Value]]
) -> dict[str, Int64s]:
    """The samples of each phase, phases in their order.

    Args:
        phases: of the recipe.
        store: the training samples.
        seed: decides which of equal numbers come first.
        column: what a column of the rows says of each sample, in the order of the store.

    Returns:
        Name -> rising store indices. Every sample is in one phase.

    Raises:
        DataError: a sample has no phase or no number; names its file and row.
        RecipeError: the phases of the recipe do not fit the data.
    """
    if phases.by == BY_PHASE:
        return _ordered(phases, _by_name(store, store.phase_of, store.phase_names, _no_phase))
    if phases.by == BY_LENGTH:
        return _ordered(phases, _by_number(phases, store.supervised.astype(np.float64), seed))
    values = column(phases.by)
    if all(value is None for value in values):
        raise RecipeError(
            f"phases.by is '{phases.by}', but no row of {store.meta['files'][0]} has such a column with text or "
            f"numbers in it; give {BY_PHASE}, {BY_LENGTH} or a column of the data"
        )
    if phases.cuts:
        return _ordered(phases, _by_number(phases, _numbers(phases.by, values, store), seed))
    names: dict[str, int] = {}
    numbers = [names.setdefault("" if value is None else str(value), len(names)) for value in values]

    def lacking(place: str) -> str:
        return f"{place}: has no '{phases.by}' (text or number), which names the phases; add it, or remove the row"

    return _ordered(phases, _by_name(store, np.array(numbers, np.int32), list(names), lacking))


def check_names(asked: Sequence[str], known: Sequence[str], key: str) -> None:
    """Refuse a name that no phase has.

    Raises:
        RecipeError: with the nearest name.
    """
    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise RecipeError(f"phases.{key}: there is no phase '{name}'{hint} (there is {', '.join(known)})")


def _no_phase(place: str) -> str:
    return f"{place}: has no phase; give its data entry 'phase: NAME', or the row a column 'phase'"


def _by_name(
    store: TokenStore, numbers: NDArray[np.int32], names: Sequence[str], lacking: Callable[[str], str]
) -> dict[str, Int64s]:
    if "" in names:
        raise DataError(lacking(store.place(int(np.argmax(numbers == names.index("")))))) from None
    if len(names) > MOST:
        raise RecipeError(
            f"phases.by gives {len(names):,} phases ({names[0]}, {names[1]}, ...), at most {MOST} are sensible; choose "
            "another column, or split its numbers with phases.at"
        )
    return {name: np.flatnonzero(numbers == number) for number, name in enumerate(names)}


def _by_number(phases: Phases, values: NDArray[np.float64], seed: int) -> dict[str, Int64s]:
    """Parts of the samples in rising order of their values; chance, not the files, decides between equal ones."""
    ranking = np.lexsort((sample_keys(seed ^ _TIES, 0, 0, len(values)), values))
    parts = np.split(ranking, [round(cut * len(values)) for cut in phases.cuts])
    if any(not len(part) for part in parts):
        raise RecipeError(
            f"phases.at is {phases.at or 0.5}: a split of {len(values):,} samples there leaves a phase empty; give "
            "another share or more data"
        )
    return {f"part-{number}": np.sort(part) for number, part in enumerate(parts, start=1)}


def _numbers(name: str, values: Sequence[Value], store: TokenStore) -> NDArray[np.float64]:
    """The values as numbers; CSV has them as text."""
    numbers = np.empty(len(values))
    for index, value in enumerate(values):
        try:
            numbers[index] = math.nan if value is None else float(value)
        except (ValueError, OverflowError):
            numbers[index] = math.nan
        if not math.isfinite(numbers[index]):
            found = "is missing" if value is None else f"is {str(value)[:40]!r}, no number"
            raise DataError(
                f"{store.place(index)}: its '{name}' {found}, but phases.at splits by numbers; mend the row, or remove "
                "phases.at if its values are names"
            )
    return numbers


def _ordered(phases: Phases, found: dict[str, Int64s]) -> dict[str, Int64s]:
    names = list(found)
    check_names(phases.order, names, "order")
    if phases.order and (left := [name for name in names if name not in phases.order]):
        raise RecipeError(f"phases.order does not name {', '.join(left)}; name all phases, or remove order")
    return {name: found[name] for name in phases.order or names}
