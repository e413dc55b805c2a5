"""Checkpoints written while training goes on: a copy in memory, a thread for the files, one save at a time.

What training waits for is the copy. The thread writes and flushes this rank's files and talks to nobody: messages
between ranks belong to the main thread, which asks at each micro-batch whether all ranks are done
and then publishes. Until that moment the save does not exist; a run that is killed goes on from the one before.

A save that training waits for anyway (the last one, one before a stop, one that is scored at once) and one for whose
copy there is no memory take the same way without the copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sengi.model.cost import available_memory
from sengi.train.checkpoint import Save
from sengi.train.distributed import World, ranks_here
from sengi.train.observer import Observer
from sengi.train.snapshot import snapshot_bytes, take

SHARE = 0.5  # of the free memory that the copy may take
SAY_AFTER = 1.0  # seconds that training may wait for the save before without a word
GIVE_UP = 10.0  # seconds that a failing rank waits for the file in the making


class Saver:
    """Saves the checkpoints of a run. All ranks hold one and call it together, but for :meth:`close`.

    Args:
        run: the run folder.
        world: the processes of the run.
        observer: told of waiting.
        background: whether training may go on while files are written.
        published: called on all ranks when a checkpoint is safe on disk, with its folder.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        observer: Observer,
        background: bool,
        published: Callable[[Path], None],
    ) -> None:
        self.run, self.world, self.observer, self.background = run, world, observer, background
        self.published = published
        self._copies = HostCopies()
        self._room: bool | None = None
        self._save: Save | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        export_dtype: torch.dtype,
        files: dict[str, bytes],
        facts: dict[str, Any],
        wait: bool,
    ) -> None:
        """Begin the checkpoint of ``step``; with ``wait`` it is safe on disk on return.

        Args:
            model: the (sharded) supervised model; ``optimizer`` its optimizer.
            export_dtype: type of the weights in the Hugging Face files.
            files: the other files of the folder, name -> content.
            facts: kept in the manifest.
            wait: whether training waits for it in any case.

        Raises:
            StorageError: this save or the one before failed on some rank (the same error on all).
        """
        self._finish_before(step)
        copied = self.background and not wait and self._has_room(model, optimizer, export_dtype)
        snapshot = take(model, optimizer, self.world, export_dtype, self._copies.copy if copied else None)
        self._copies.complete()
        self._save, self._failure = Save(self.run, step, self.world, snapshot, files, facts), None
        self._thread = threading.Thread(target=self._write, args=(self._save,), name="save", daemon=True)
        self._thread.start()
        if not copied:
            self.finish()

    def poll(self) -> None:
        """Publish the checkpoint in the making if all ranks have written their files.

        Raises:
            StorageError: a write failed on some rank (the same error on all).
        """
        if self._thread is not None and not self.world.any(self._thread.is_alive()):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in the making, if there is one, and publish it.

        Raises:
            StorageError: a write failed on some rank (the same error on all).
        """
        if self._thread is None or self._save is None:
            return
        self._thread.join()
        save, self._save, self._thread = self._save, None, None
        self.published(save.publish(self._failure))

    def close(self, error: BaseException | None) -> None:
        """End what is in the making when the run ends by an error. A lone process still publishes it: nothing is lost.

        Several processes cannot: one of them may be gone, and the others would wait for it.
        """
        if self._save is None or self._thread is None or isinstance(error, KeyboardInterrupt):
            return  # interrupted twice: at once, as asked
        if self.world.size == 1:
            try:
                self.finish()
            except Exception as second:  # the first error is the one to tell
                self.observer.message(f"the checkpoint in the making is lost, too: {second}")
            return
        self._save.given_up = True
        self._thread.join(GIVE_UP)
        self._save.remove()

    def _write(self, save: Save) -> None:
        try:
            save.write()
        except BaseException as error:  # raised on all ranks, by the main thread, when it is published
            self._failure = error

    def _finish_before(self, step: int) -> None:
        if self._save is None:
            return
        name, started = self._save.folder.name, time.monotonic()
        self.finish()
        if (waited := time.monotonic() - started) > SAY_AFTER:
            self.observer.message(
                f"training waited {waited:.0f} s for {name} before it could save step {step}: a second save does not "
                "begin before the first is on disk; save less often (save_steps, save_samples) or on a faster disk"
            )

    def _has_room(self, model: nn.Module, optimizer: torch.optim.Optimizer, export_dtype: torch.dtype) -> bool:
        """Whether the memory of every machine has room for the copies; looked at once, for all ranks alike."""
        if self._room is None:
            need = snapshot_bytes(model, optimizer, self.world, export_dtype)
            free = available_memory(torch.device("cpu"), ranks_here())
            short = self.world.gather([need, free] if need > SHARE * free else None)
            self._room = not any(short)
            for rank, (need, free) in ((rank, sizes) for rank, sizes in enumerate(short) if sizes):
                self.observer.message(
                    f"checkpoints are not saved in the background: rank {rank} would copy {need / 1e9:.2f} GB, and "
                    f"{free / 1e9:.2f} GB of memory are free; training waits for each save"
                )
                break
        return self._room


class HostCopies:
    """Copies of tensors in the memory of the CPU, made once and used again by the next save."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._on_gpu = False

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """The copy of ``tensor`` in the place of that name; on a GPU it is there after :meth:`complete`."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            # page-locked memory takes copies from a GPU at full speed, and beside the CPU's work
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            self._kept[name] = kept
        self._on_gpu |= tensor.is_cuda
        return kept.copy_(tensor, non_blocking=True)

    def complete(self) -> None:
        """Wait until all copies are there."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
