"""Checkpoints written while training goes on: what is saved, when it counts, and what happens to its errors."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as library_bytes
from tests.train.linear_layers import LinearLayers
from tests.train.memory_run import ALONE

from sengi import storage
from sengi.disk import disk
from sengi.errors import StorageError
from sengi.train import background_save
from sengi.train.background_save import HostCopies, Saver
from sengi.train.checkpoint import load, newest_valid
from sengi.train.observer import Observer
from sengi.train.snapshot import snapshot_bytes, take
from sengi.train.tensor_files import JOINED, safetensors_pieces

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
shapes = st.lists(st.integers(0, 4), max_size=3)
named = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(DTYPES), shapes), max_size=8)


# Rule: the pieces are byte for byte what the library writes, whatever the names, types and shapes.
@given(named, st.none() | st.just({"format": "pt"}))
def test_pieces_are_the_library_s_bytes(described: dict[str, Any], metadata: dict[str, str] | None) -> None:
    tensors = {name: (torch.rand(shape) * 9).to(dtype) for name, (dtype, shape) in described.items()}
    assert b"".join(safetensors_pieces(tensors, metadata)) == library_bytes(tensors, metadata)


# Rule: a large tensor is written from its own memory, small ones together.
def test_large_tensors_are_not_copied_and_small_ones_are_few_pieces() -> None:
    large = torch.zeros(JOINED // 4 + 1)
    pieces = list(safetensors_pieces({"a": large, **{f"b{n}": torch.zeros(8) for n in range(100)}}))
    assert len(pieces) == 3
    large[0] = 1.0
    assert bytes(pieces[1][:4]) == bytes(torch.ones(1).numpy().data)


class Notes(Observer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


class Held:
    """A disk that makes the writing thread wait at its first file until it is let go, and then perhaps fails."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.error = 0

    def __call__(self, name: str, number: int, path: Path) -> None:
        if name == "write" and threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.go.wait(60)
            if self.error:
                raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def held() -> Iterator[Held]:
    fault = Held()
    disk.fault = fault
    yield fault
    disk.fault = None
    fault.go.set()


class Run:
    """A model of two layers, its optimizer, and a saver into a folder."""

    def __init__(self, folder: Path, background: bool = True) -> None:
        torch.manual_seed(0)
        self.folder, self.notes, self.published = folder, Notes(), []
        self.model = LinearLayers(3, 4, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.saver = Saver(folder, ALONE, self.notes, background, lambda path: self.published.append(path.name))

    def train(self) -> dict[str, torch.Tensor]:
        """A step; returns the weights after it."""
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: p.detach().clone() for name, p in self.model.lm.named_parameters()}

    def save(self, step: int, wait: bool = False) -> None:
        files, facts = {"README.md": b"x"}, {"samples_seen": step}
        self.saver.save(
            step, self.model, self.optimizer, export_dtype=torch.float32, files=files, facts=facts, wait=wait
        )


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# Rule: the checkpoint holds the moment of the save, though training changed the weights before a byte was written, and
# it exists, and is told of, only when its last byte is safe.
def test_training_goes_on_and_the_checkpoint_is_of_its_step(tmp_path: Path, held: Held) -> None:
    run = Run(tmp_path)
    at_save = run.train()
    moments = {kind: run.optimizer.state[run.model.lm[0].weight][kind].clone() for kind in ("exp_avg", "exp_avg_sq")}
    run.save(1)
    assert held.reached.wait(60)
    later = run.train()
    run.saver.poll()
    assert storage.published(tmp_path, "checkpoint-") == []
    assert run.published == []
    held.go.set()
    run.saver.finish()
    assert run.published == ["checkpoint-1"]
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    for name, weights in at_save.items():
        torch.testing.assert_close(saved[name], weights, rtol=0, atol=0)
        assert not torch.equal(later[name], weights)
    found = newest_valid(tmp_path, ALONE, print)
    assert found is not None
    load(found[0], run.model, run.optimizer, ALONE)
    assert torch.equal(run.model.lm[0].weight, at_save["0.weight"])
    for kind, moment in moments.items():
        assert torch.equal(run.optimizer.state[run.model.lm[0].weight][kind], moment)
    assert float(run.optimizer.state[run.model.lm[0].weight]["step"]) == 1.0


# Rule: at most one save is in the making; a second one waits for it and says so.
def test_a_second_save_waits_and_says_so(tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_save, "SAY_AFTER", 0.0)
    run = Run(tmp_path)
    run.train()
    run.save(1)
    run.train()
    threading.Timer(0.05, held.go.set).start()
    run.save(2)
    assert run.published == ["checkpoint-1"]
    assert len(run.notes.said) == 1
    assert "for checkpoint-1 before it could save step 2" in run.notes.said[0]
    run.saver.finish()
    assert run.published == ["checkpoint-1", "checkpoint-2"]


# Rule: the writer's error is raised where the main thread next looks, with the words of any failed write; nothing
# half-written stays, the checkpoint before is whole, and the weights are untouched.
def test_a_full_disk_is_told_at_the_next_look_and_nothing_is_lost(tmp_path: Path, held: Held) -> None:
    run = Run(tmp_path)
    run.train()
    held.go.set()
    run.save(1, wait=True)
    run.train()
    held.go.clear()
    held.error = errno.ENOSPC
    run.save(2)
    weights = run.train()
    held.go.set()
    assert run.saver._thread is not None
    run.saver._thread.join()
    with pytest.raises(StorageError, match=r"checkpoint-2.*failed: No space left on device; .* GB free; free space"):
        run.saver.poll()
    assert [path.name for path in storage.published(tmp_path, "checkpoint-")] == ["checkpoint-1"]
    assert storage.verify(tmp_path / "checkpoint-1")["step"] == 1
    assert leftovers(tmp_path) == []
    assert run.published == ["checkpoint-1"]
    assert all(torch.equal(weights[name], p) for name, p in run.model.lm.named_parameters())
    run.saver.poll()  # told once


# Rule: a run of one process that ends by another error still publishes what is in the making; one that is interrupted
# twice does not wait.
@pytest.mark.parametrize(("error", "kept"), [(ValueError("x"), True), (KeyboardInterrupt(), False)])
def test_an_error_does_not_lose_the_save_in_the_making(
    tmp_path: Path, held: Held, error: BaseException, kept: bool
) -> None:
    run = Run(tmp_path)
    run.train()
    run.save(1)
    assert held.reached.wait(60)
    if kept:
        held.go.set()
    run.saver.close(error)
    assert run.published == (["checkpoint-1"] if kept else [])


def test_the_first_error_is_told_when_the_save_fails_too(tmp_path: Path, held: Held) -> None:
    run = Run(tmp_path)
    run.train()
    held.error = errno.EIO
    run.save(1)
    held.go.set()
    run.saver.close(ValueError("first"))
    assert len(run.notes.said) == 1
    assert "the checkpoint in the making is lost, too" in run.notes.said[0]
    assert leftovers(tmp_path) == []


# Rule: without memory for the copy, or when it is switched off, a save is whole on return.
@pytest.mark.parametrize("background", [True, False])
def test_without_room_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool) -> None:
    run = Run(tmp_path, background)
    run.train()
    need = snapshot_bytes(run.model, run.optimizer, ALONE, torch.float32)
    monkeypatch.setattr(background_save, "available_memory", lambda *_: 2 * need - 1)
    for step in (1, 2):
        run.save(step)
        assert run.published[-1] == f"checkpoint-{step}"
    assert len(run.notes.said) == (1 if background else 0)  # once, not at every save
    monkeypatch.setattr(background_save, "available_memory", lambda *_: 2 * need)
    roomy = Run(tmp_path / "other")
    (tmp_path / "other").mkdir()
    roomy.train()
    roomy.save(1)
    assert roomy.saver._save is not None
    roomy.saver.finish()
    assert roomy.notes.said == []


# Rule: the copy is as large as was announced, is made in the same memory at the next save, and holds no weight twice.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_as_large_as_announced_and_used_again(tmp_path: Path, dtype: torch.dtype) -> None:
    run, copies = Run(tmp_path), HostCopies()
    run.train()
    first = take(run.model, run.optimizer, ALONE, dtype, copies.copy)
    places = {name: tensor.data_ptr() for name, tensor in [*first.weights.items(), *first.state.items()]}
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in [*first.weights.values(), *first.state.values()]}
    assert sum(sizes.values()) == snapshot_bytes(run.model, run.optimizer, ALONE, dtype)
    run.train()
    second = take(run.model, run.optimizer, ALONE, dtype, copies.copy)
    assert places == {name: tensor.data_ptr() for name, tensor in [*second.weights.items(), *second.state.items()]}
    live = take(run.model, run.optimizer, ALONE, dtype)
    assert not {t.data_ptr() for t in live.state.values()} & set(places.values())
    for name, weights in live.weights.items():
        assert torch.equal(weights, second.weights[name])
        assert weights.dtype == dtype
