"""Checkpoints: what a run needs to go on exactly where it was, beside a model folder that others can load.

    checkpoint-<step>/
      config.json, model.safetensors, tokenizer.json, ...      Hugging Face layout (export.py)
      training_state/layout.json                               where each tensor's rows lie
      training_state/rank-<r>-<n>.safetensors                  this rank's rows of master weights and moments
      manifest.json, manifest.json.sha256                      hashes of all of it, written last (storage.py)

There is no pickle. A tensor is stored as ranges of rows, so a checkpoint of W ranks loads on any other number.
There is no random state to keep: the data order is a pure function of the step, and dropout is off.

A save has three parts: ``snapshot.take`` (all ranks) says what is to be written, :meth:`Save.write` writes this rank's
part and runs in a thread (background_save.py), :meth:`Save.publish` (all ranks) makes a checkpoint of the parts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sengi import storage
from sengi.errors import CheckpointError, StorageError
from sengi.train.distributed import World
from sengi.train.export import SHARD_BYTES, weight_files
from sengi.train.optimizer import local
from sengi.train.optimizer_states import begun, set_step, state_kinds
from sengi.train.snapshot import Snapshot, rows_of, trained
from sengi.train.tensor_files import safetensors_pieces

FORMAT = 1
STATE = "training_state"
PREFIX = "checkpoint-"


class Save:
    """One checkpoint on its way to disk. All ranks make one together.

    Args:
        run: the run folder.
        step: steps done.
        world: the processes of the run.
        snapshot: of this rank.
        files: the other files of the folder, name -> content.
        facts: kept in the manifest and returned by :func:`newest_valid`.

    Raises:
        StorageError: the folder cannot be made (the same error on all ranks).
    """

    def __init__(
        self,
        run: Path,
        step: int,
        world: World,
        snapshot: Snapshot,
        files: dict[str, bytes],
        facts: dict[str, Any],
    ) -> None:
        self.folder = run / f"{PREFIX}{step}"
        self.world, self.snapshot, self.files = world, snapshot, files
        self.facts = {"format": FORMAT, "step": step, "world_size": world.size, **facts}
        self.stage = storage.Stage(Path(world.on_first(lambda: str(storage.begin(self.folder).path))))
        self.layout: dict[str, Any] = {}
        self.given_up = False

    def write(self) -> None:
        """Write this rank's files; talks to no other rank.

        Raises:
            StorageError: a write failed.
        """
        if self.world.first:
            for name, content in self.files.items():
                self.stage.write(name, content)
            for name, pieces in weight_files(self.snapshot.lm, self.snapshot.weights):
                self.stage.write(name, *pieces)
        for number, names in enumerate(_files_worth(self.snapshot.state)):
            if self.given_up:
                return
            file = f"rank-{self.world.rank:05d}-{number:05d}.safetensors"
            tensors = {name: self.snapshot.state[name].cpu().contiguous() for name in names}
            self.stage.write(f"{STATE}/{file}", *safetensors_pieces(tensors))
            self.layout[file] = {name: list(self.snapshot.rows[name]) for name in names}

    def publish(self, failure: BaseException | None) -> Path:
        """Make a checkpoint of what all ranks wrote; on return it is safe on disk. All ranks call this together.

        Args:
            failure: what this rank's :meth:`write` raised.

        Raises:
            StorageError: a write failed on some rank (the same error on all); no checkpoint was published.
        """

        def part() -> dict[str, Any]:
            if failure is not None:
                raise failure
            return {"records": self.stage.records, "layout": self.layout}

        try:
            parts = self.world.together(part)
            self.world.on_first(lambda: self._seal(parts))
        except BaseException:
            self.remove()
            raise
        return self.folder

    def _seal(self, parts: list[dict[str, Any]]) -> None:
        layout = {file: rows for part in parts for file, rows in part["layout"].items()}
        self.stage.write(f"{STATE}/layout.json", json.dumps({"format": FORMAT, "rows": layout}, indent=1).encode())
        for part in parts:
            self.stage.records.update(part["records"])
        storage.publish(self.stage, self.folder, self.facts)

    def remove(self) -> None:
        """Remove what was written, by rank 0; what cannot be removed is swept up by the next start."""
        if self.world.first and self.stage.path.exists():
            with contextlib.suppress(StorageError):
                storage.remove(self.stage.path)


def newest_valid(run: Path, world: World, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose every byte verifies, and its manifest; a bad one is set aside, aloud.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
        StorageError: one cannot be read just now; nothing is set aside, because it may be in order.
    """

    def look() -> list[Any] | None:
        bad: list[str] = []
        for folder in reversed(storage.published(run, PREFIX)):
            try:
                facts = storage.verify(folder)
                if f"{PREFIX}{facts.get('step')}" != folder.name:
                    raise CheckpointError(f"{folder}: holds step {facts.get('step')}; the folder was renamed")
                return [str(folder), facts]
            except CheckpointError as error:
                bad.append(str(error))
                kept = storage.set_aside(folder)
                say(f"corrupt checkpoint: {error}. Kept as {kept.name}; falling back to the one before")
        # also on the next call: a job that restarts by itself must not start over and cut the log
        if aside := sorted(path.name for path in run.glob(f".quarantine-{PREFIX}*")):
            raise CheckpointError(
                f"{bad[0] if bad else run}; no other checkpoint is left: restore one, or remove {', '.join(aside)} to "
                "start over"
            )
        return None

    found = world.on_first(look)
    return (Path(found[0]), found[1]) if found is not None else None


def prune(run: Path, keep: int | None, spared: Collection[int], place: Callable[[int], float] = float) -> None:
    """Remove checkpoints but the newest ``keep`` (None: all) and those of the ``spared`` steps; rank 0 only.

    Args:
        place: of a step in the line from old to new.
    """
    steps = [int(folder.name.removeprefix(PREFIX)) for folder in storage.published(run, PREFIX)]
    for step in sorted(steps, key=place)[:-keep] if keep else []:
        if step not in spared:
            storage.remove(run / f"{PREFIX}{step}")


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, world: World) -> None:
    """Fill master weights and optimizer from a verified checkpoint, whatever world size wrote it.

    Args:
        optimizer: None leaves its moments where they are: only weights are read.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """

    def read() -> None:
        state = folder / STATE
        layout = json.loads((state / "layout.json").read_text(encoding="utf-8"))["rows"]
        names = trained(model)
        _check_same_model(state, layout, names)
        for name, parameter in names:
            for kind in ("param", *(state_kinds(optimizer, parameter) if optimizer is not None else ())):
                target = parameter if optimizer is None or kind == "param" else begun(optimizer, parameter)[kind]
                shape = tuple(local(target).shape)
                values = _read_rows(state, layout, f"{kind}.{name}", rows_of(target), shape)
                with torch.no_grad():
                    local(target).copy_(values)
        if optimizer is None:
            return
        saved = _read_rows(state, layout, "step", None, ())
        for _, parameter in names:
            set_step(optimizer, parameter, saved)

    world.together(read)


def _check_same_model(state: Path, layout: dict[str, Any], names: list[tuple[str, nn.Parameter]]) -> None:
    """Rows alone would not tell: those of a smaller model are all there in a larger one's checkpoint."""
    saved: dict[str, int] = {}
    for rows in layout.values():
        for key in (key for key in rows if key.startswith("param.")):
            saved[key] = max(saved.get(key, 0), rows[key][1])
    here = {f"param.{name}": parameter.shape[0] if parameter.ndim else 0 for name, parameter in names}
    for key in sorted(saved.keys() | here.keys()):
        if saved.get(key) != here.get(key):
            was, is_ = (f"{count:,} rows" if count is not None else "none" for count in (saved.get(key), here.get(key)))
            raise CheckpointError(
                f"{state}: {key} has {was}, the model has {is_}; this checkpoint belongs to another model"
            )


def _files_worth(state: dict[str, Tensor]) -> Iterator[list[str]]:
    """The names of ``state``, a file's worth at a time."""
    names: list[str] = []
    size = 0
    for name, tensor in state.items():
        if size + tensor.nbytes > SHARD_BYTES and size:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _read_rows(
    state: Path, layout: dict[str, Any], key: str, wanted: tuple[int, int] | None, shape: tuple[int, ...]
) -> Tensor:
    """Rows of a tensor, put together from the files that hold them."""
    pieces: list[tuple[int, Tensor]] = []
    for file, rows in layout.items():
        if key not in rows:
            continue
        first, last = rows[key]
        with safe_open(state / file, framework="pt") as tensors:
            if wanted is None or (first, last) == (0, 0):
                return tensors.get_tensor(key)
            a, b = max(first, wanted[0]), min(last, wanted[1])
            if a < b:
                pieces.append((a, tensors.get_slice(key)[a - first : b - first]))
    values = torch.cat([piece for _, piece in sorted(pieces, key=lambda p: p[0])]) if pieces else torch.empty(shape)
    if tuple(values.shape) != shape or (not pieces and values.numel()):
        raise CheckpointError(
            f"{state}: {key} has shape {tuple(values.shape)} here and {shape} in the model; "
            "this checkpoint belongs to another model"
        )
    return values
