from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import warm
from tests.model.tiny_folder import write_tiny_folder as write_model
from tests.train.memory_run import ALONE

from sengi.environment import KERNEL_CACHES
from sengi.errors import DataError
from sengi.recipe_sources import resolve_recipe
from sengi.train.distributed import World
from sengi.train.run import train
from sengi.train.turns import in_turns

REDUCTIONS = ("token", "sample")
# Tokens a micro-batch may hold: the longest sample alone, something odd, everything at once
BUDGETS = {1: ("longest", 100_000), 2: ("longest", 197), 4: ("longest",)}
SAMPLES, BATCH, EPOCHS = 29, 7, 2  # a step crosses the epochs, the last one is short: 2 of 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, training data, held-out data."""
    folder = tmp_path_factory.mktemp("distributed")
    write_model(folder / "model")
    words = ["The", "capital", "of", "France", "is", "Paris", "and", "a", "dog", "barks"]
    for name, first, count in (("train", 0, SAMPLES), ("heldout", 100, 5)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": " ".join(words[: n % 5 + 1]) + f" {n}?"},
                    {"role": "assistant", "content": " ".join(words[n % 3 : n % 3 + (n * n) % 7 + 1])},
                ],
                "source": f"s{n % 2}",
            }
            for n in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_recipe(folder: Path, world: int, budget: int, reduction: str, **more: Any) -> Path:
    name = "-".join([f"w{world}-b{budget}-{reduction}", *more])
    recipe: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": str(folder / "train.jsonl")}],
        "eval_data": [{"path": str(folder / "heldout.jsonl")}],
        "eval_steps": 2,  # a save after an evaluation must find the model as training left it
        "save_steps": 2,
        "output_dir": str(folder / "runs" / name),
        "effective_batch_size": BATCH,
        "num_train_epochs": EPOCHS,
        "learning_rate": 1e-3,
        "max_tokens_per_device": budget,
        "loss_reduction": reduction,
        "dtype": "float32",
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(recipe | more))  # JSON is YAML
    return path


def dynamics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()]


def heldout(run: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(path.read_text())["scores"] for path in sorted((run / "evaluations").glob("*heldout.json"))]


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[int, dict[str, list[Path]]]:
    """All runs, by number of processes and loss reduction; the first of one process is the reference."""
    from sengi.data.store import StoreOptions
    from sengi.data.store_build import open_store
    from sengi.model.load import load_tokenizer
    from sengi.recipe import DataEntry

    tokenizer = load_tokenizer(folder / "model")
    store = open_store([DataEntry(path=str(folder / "train.jsonl"))], tokenizer, StoreOptions(4096, "drop"))
    longest = int(store.lengths.max())
    assert longest < 100  # so that all budgets are different
    found: dict[int, dict[str, list[Path]]] = {}
    launched: list[str] = []
    for world, budgets in BUDGETS.items():
        recipes = {
            reduction: [
                write_recipe(folder, world, longest if b == "longest" else int(b), reduction) for b in budgets[::-1]
            ]
            for reduction in REDUCTIONS
        }
        everything = [path for paths in recipes.values() for path in paths]
        if world == 1:
            for path in everything:
                train(resolve_recipe(path))
        launched += [f"{world}:{path}" for path in everything if world > 1]
        found[world] = {r: [folder / "runs" / path.stem for path in paths] for r, paths in recipes.items()}
    question = {"question": "What is the capital of France?", "choices": ["Paris", "Rome"], "answer": 0}
    (folder / "own.jsonl").write_text(json.dumps(question) + "\n")
    scored = write_recipe(folder, 2, longest, "token", eval_tasks=[f"questions:{folder / 'own.jsonl'}"])
    found[2]["scored"] = [folder / "runs" / scored.stem]
    launched.append(f"2:{scored}")
    launched += ways_to_shard(folder, longest, found) + whole_batches(folder, longest, found)
    launched += in_half_precision(folder, longest, found)
    launch(folder, max(BUDGETS), launched)
    train(resolve_recipe(folder / f"{found[4]['resharded'][0].name}.json"))  # from step 8 of four, on one
    return found


def ways_to_shard(folder: Path, longest: int, found: dict[int, dict[str, list[Path]]]) -> list[str]:
    """Hybrid over two machines of two; gradients reduced each time; weights kept; 1 to 2 to 2x2 to 4 to 1 ranks."""
    each, hybrid = {"fsdp_gradient_reduction": "micro_batch"}, {"fsdp_sharding_strategy": "hybrid_shard"}
    ways = [("4/2", each | hybrid), ("4", each | {"fsdp_reshard_after_forward": False})]
    recipes = [(size, write_recipe(folder, 4, longest, "token", **keys)) for size, keys in ways]
    found[4]["ways"] = [folder / "runs" / path.stem for _, path in recipes]
    more = {"save_steps": 1, "save_total_limit": None, "fsdp_sharding_strategy": "hybrid_shard"}
    moved = write_recipe(folder, 1, longest, "token", **more)
    train(resolve_recipe(moved))
    found[4]["resharded"] = [folder / "runs" / moved.stem]
    chain = [f"{size}:{moved}@{step}" for size, step in (("2", 2), ("4/2", 4), ("4", 6))]
    # of the last one only steps 7 and 8 count: a run of no more processes goes back to 8
    return [f"{size}:{path}" for size, path in recipes] + chain + [f"0:{moved}@8"]


def whole_batches(folder: Path, longest: int, found: dict[int, dict[str, list[Path]]]) -> list[str]:
    """All samples in one step: enough micro-batches a rank for gradients to be reduced at the middle of the step."""
    whole, hybrid = {"effective_batch_size": SAMPLES}, {"fsdp_sharding_strategy": "hybrid_shard"}
    each = {"fsdp_gradient_reduction": "micro_batch"}
    alone = write_recipe(folder, 1, longest, "token", **whole)
    train(resolve_recipe(alone))
    ways = [("2", 2, whole), ("2", 2, whole | each), ("4/2", 4, whole | hybrid), ("4/2", 4, whole | hybrid | each)]
    recipes = [(size, write_recipe(folder, world, longest, "token", **keys)) for size, world, keys in ways]
    found[4]["whole"] = [folder / "runs" / path.stem for _, path in [("1", alone), *recipes]]
    return [f"{size}:{path}" for size, path in recipes]


def in_half_precision(folder: Path, longest: int, found: dict[int, dict[str, list[Path]]]) -> list[str]:
    """One process, two, four, two machines of two, and from step 4 of one process on two machines of two."""
    half, hybrid = {"dtype": "bfloat16"}, {"fsdp_sharding_strategy": "hybrid_shard"}
    alone = write_recipe(folder, 1, longest, "token", **half)
    moved = write_recipe(folder, 1, longest, "token", **half, **hybrid, save_total_limit=None)
    for path in (alone, moved):
        train(resolve_recipe(path))
    ways = [("2", 2, half), ("4", 4, half), ("4/2", 4, half | hybrid)]
    recipes = [(size, write_recipe(folder, world, longest, "token", **keys)) for size, world, keys in ways]
    recipes.append(("4/2", moved))
    found[4]["half"] = [folder / "runs" / path.stem for _, path in [("1", alone), *recipes]]
    return [f"{size}:{path}{'@4' if path == moved else ''}" for size, path in recipes]


def launch(folder: Path, world: int, runs: list[str]) -> None:
    out = folder / "talk"
    out.mkdir()
    command = [str(Path(__file__).with_name("rank_program.py")), str(out), *runs]
    done = warm.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, ranks=world, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("world", list(BUDGETS))
def test_processes_and_budgets_change_nothing(
    runs: dict[int, dict[str, list[Path]]], world: int, reduction: str
) -> None:
    reference = dynamics(runs[1][reduction][0])
    assert len(reference) == -(-SAMPLES * EPOCHS // BATCH)
    for run in runs[world][reduction]:
        lines = dynamics(run)
        for mine, wanted in zip(lines, reference, strict=True):
            for key in ("step", "samples_sha256", "samples_seen", "num_tokens", "num_supervised_tokens", "epoch"):
                assert mine[key] == wanted[key], (run.name, key)
            for key in ("loss", "grad_norm"):
                assert mine[key] == pytest.approx(wanted[key], rel=1e-4), (run.name, mine["step"], key)
    # it was a training, and the reductions are not the same
    assert reference[-2]["loss"] < reference[0]["loss"]
    other = dynamics(runs[1]["token" if reduction == "sample" else "sample"][0])
    assert abs(reference[2]["loss"] / other[2]["loss"] - 1) > 1e-2


# Hybrid sharding counts no gradient twice, and when gradients are reduced does not matter.
def test_ways_to_shard_change_nothing(runs: dict[int, dict[str, list[Path]]]) -> None:
    reference = runs[1]["token"][0]
    for run in runs[4]["ways"]:
        same_training(run, reference)
        assert [score for step in heldout(run) for score in step] == [
            {key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value for key, value in score.items()}
            for step in heldout(reference)
            for score in step
        ]
    # every row is saved once: the second machine's copies are not written
    hybrid, full = ((run / "checkpoint-9" / "training_state").iterdir() for run in runs[4]["ways"])
    assert sorted(path.name for path in hybrid) == ["layout.json", *(f"rank-0000{r}-00000.safetensors" for r in (0, 1))]
    assert len(list(full)) == 5


# In bfloat16 the order of sums shows: within its rounding it is one training, which is that of float32 nearly.
def test_half_precision_on_any_number_of_processes(runs: dict[int, dict[str, list[Path]]]) -> None:
    alone, *others = runs[4]["half"]
    whole = dynamics(runs[1]["token"][0])
    for mine, wanted in zip(dynamics(alone), whole, strict=True):
        assert mine["loss"] != wanted["loss"]
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=0.01)
    assert len(others) == 4
    for run in others:
        for mine, wanted in zip(dynamics(run), dynamics(alone), strict=True):
            assert mine["samples_sha256"] == wanted["samples_sha256"]
            assert mine["loss"] == pytest.approx(wanted["loss"], rel=3e-3), (run.name, mine["step"])
            assert mine["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.02), (run.name, mine["step"])
    moved = [
        json.loads((others[-1] / f"checkpoint-{step}" / "manifest.json").read_text())["world_size"] for step in (4, 6)
    ]
    assert moved == [1, 4]


# The first half of a step's samples is the same on any number of ranks, and so is its gradient.
def test_the_norm_of_a_half_is_that_of_one_process(runs: dict[int, dict[str, list[Path]]]) -> None:
    alone, *others = (dynamics(run) for run in runs[4]["whole"])
    assert len(others) == 4
    for lines in others:
        for mine, wanted in zip(lines, alone, strict=True):
            assert 0.3 < wanted["half_share"] < 0.7
            assert wanted["half_grad_norm"] > wanted["grad_norm"]
            for key in ("loss", "grad_norm", "half_grad_norm", "half_share"):
                assert mine[key] == pytest.approx(wanted[key], rel=1e-4), key


# A checkpoint of one process goes on with two, theirs with two machines of two, theirs with four, theirs with one.
def test_a_run_moves_between_numbers_of_processes(runs: dict[int, dict[str, list[Path]]]) -> None:
    run = runs[4]["resharded"][0]
    worlds = [json.loads((run / f"checkpoint-{k}" / "manifest.json").read_text())["world_size"] for k in range(1, 10)]
    assert worlds == [1, 1, 2, 2, 4, 4, 4, 4, 1]
    same_training(run, runs[1]["token"][0])


def same_training(run: Path, reference: Path) -> None:
    """The same samples, losses and gradient norms at every step, and the same weights at the end."""
    from safetensors.torch import load_file

    for mine, wanted in zip(dynamics(run), dynamics(reference), strict=True):
        assert mine["samples_sha256"] == wanted["samples_sha256"]
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(wanted[key], rel=1e-4), (run.name, mine["step"], key)
    ours, theirs = (load_file(folder / "checkpoint-9" / "model.safetensors") for folder in (run, reference))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("world", [2, 4])
def test_heldout_loss_is_the_same_on_any_number_of_processes(
    runs: dict[int, dict[str, list[Path]]], world: int
) -> None:
    for reduction in REDUCTIONS:
        reference = heldout(runs[1][reduction][0])
        assert len(reference) == 6  # before, after every second of nine steps, and at the end
        for run in runs[world][reduction]:
            for mine, wanted in zip(heldout(run), reference, strict=True):
                assert [score["group"] for score in mine] == ["all", "source=s0", "source=s1"]
                for one, two in zip(mine, wanted, strict=True):
                    assert one["group"] == two["group"]
                    assert [one[k] for k in ("value", "low", "high")] == pytest.approx(
                        [two[k] for k in ("value", "low", "high")], rel=1e-4
                    )


# Rank 0 scores, the other waits; neither the log nor a byte of weights and moments shows that it happened.
def test_tasks_scored_on_the_way_change_nothing_on_two_processes(runs: dict[int, dict[str, list[Path]]]) -> None:
    scored = runs[2]["scored"][0]
    without = next(run for run in runs[2]["token"] if scored.name.startswith(f"{run.name}-"))
    found = sorted(int(path.name.split("-")[1]) for path in (scored / "evaluations").glob("*-tasks.json"))
    assert found == [0, 2, 4, 6, 8, 9]
    kept = [{key: line[key] for key in ("step", "loss", "grad_norm", "samples_sha256")} for line in dynamics(scored)]
    assert kept == [{key: line[key] for key in kept[0]} for line in dynamics(without)]
    names = sorted(path.name for path in (scored / "checkpoint-9" / "training_state").iterdir())
    assert len(names) == 3  # two ranks and the layout
    for name in ("model.safetensors", *(f"training_state/{name}" for name in names)):
        assert (scored / "checkpoint-9" / name).read_bytes() == (without / "checkpoint-9" / name).read_bytes(), name


@pytest.mark.parametrize("world", [2, 4])
def test_the_exported_weights_are_those_of_one_process(runs: dict[int, dict[str, list[Path]]], world: int) -> None:
    from safetensors.torch import load_file

    def weights(run: Path) -> dict[str, torch.Tensor]:
        return load_file(run / "checkpoint-9" / "model.safetensors")

    reference = weights(runs[1]["token"][0])
    before = load_file(runs[1]["token"][0].parents[1] / "model" / "model.safetensors")
    mine = weights(runs[world]["token"][0])
    assert mine.keys() == reference.keys() == before.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(reference[name], before[name]) for name in before)


def test_what_one_rank_does_all_learn(runs: object, folder: Path) -> None:
    world = max(BUDGETS)
    # work of hours shows that it lives
    assert json.loads((folder / "talk" / "status.json").read_text())["heartbeat"] > 0
    reports = [json.loads((folder / "talk" / f"rank-{rank}.json").read_text()) for rank in range(world)]
    last = world - 1
    for rank, said in enumerate(reports):
        assert said["place"] == [rank, world, rank == 0]
        assert [part["rank"] for part in said["gather"]] == list(range(world))
        assert [len(part["text"]) for part in said["gather"]] == [1 + 1000 * r for r in range(world)]
        assert said["sum"] == world * (world + 1) / 2
        assert said["any"] == [False, True, True]
        assert said["together"]["value"] == [f"done by {r}" for r in range(world)]
        assert said["on_first"]["value"] == {"by": 0}
        assert said["patiently"]["value"] == {"by": 0}
        assert said["patiently fails"]["error"] == ("ZeroDivisionError" if rank == 0 else "RankError")
        assert said["after"] == list(range(world))
        # a user error keeps its class and words everywhere; only the rank it happened on prints it
        error = said["input error"]
        assert (error["error"], error["text"]) == ("DataError", "a.jsonl:3: cut")
        assert error["elsewhere"] == (rank != last)
        # any other exception becomes a RankError that names rank and cause; its own rank keeps the exception
        own = rank == last
        for name, kind, text in (
            ("any error", "ZeroDivisionError", "by zero"),
            ("mask error", "MaskError", "a.jsonl:4"),
        ):
            error = said[name]
            assert error["error"] == (kind if own else "RankError")
            assert error["text"] == (text if own else f"rank {last}: {kind}: {text}")
        # of two, the lowest rank's is told
        assert said["two errors"]["text"] == "of 0"
        assert said["first fails"]["error"] == ("OSError" if rank == 0 else "RankError")
        assert "No space left" in said["first fails"]["text"]


# Rule: no more ranks of a machine work at a time than its memory has room for, and all of them get their turn.
def test_ranks_take_turns_where_memory_is_short(runs: object, folder: Path) -> None:
    world = max(BUDGETS)
    reports = [json.loads((folder / "talk" / f"rank-{rank}.json").read_text()) for rank in range(world)]
    for number, at_once in enumerate((1, 2)):
        times = [said["turns"][number] for said in reports]
        groups = [times[first : first + at_once] for first in range(0, world, at_once)]
        for before, after in itertools.pairwise(groups):
            assert max(stop for _, stop in before) <= min(start for start, _ in after)
    for rank, said in enumerate(reports):
        assert len(said["turns"]) == 3
        assert said["turns fail"]["text"] == "damaged weights"
        assert said["turns fail"]["elsewhere"] == (rank != world - 1)


def test_a_world_of_one_is_the_same_without_processes() -> None:
    assert in_turns(ALONE, 1 << 60, lambda: "read") == "read"
    assert ALONE.first
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert float(ALONE.sum(torch.tensor(3.0))) == 3.0
    assert ALONE.on_first(lambda: "x") == "x"

    def fail() -> None:
        raise DataError("a.jsonl:3")

    with pytest.raises(DataError, match=r"a\.jsonl:3") as caught:
        ALONE.together(fail)
    assert not caught.value.elsewhere


def test_large_blocks_begin_at_pages() -> None:
    # Else the heap keeps holes: a tenth of the memory of a run, with LoRA more (docs/results/memory.md).
    from sengi.environment import HUGE_PAGES

    if not HUGE_PAGES.is_dir():
        pytest.skip("this kernel knows no huge pages")
    program = (
        "import torch; from sengi.train.distributed import start_world; start_world(); "
        "print([torch.empty(3 << 18).data_ptr() % 4096 for _ in range(4)])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    for value, aligned in (({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)):
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, env=environment | value, capture_output=True, text=True, check=True)
        assert (json.loads(done.stdout) == [0, 0, 0, 0]) == aligned


def test_kernels_of_many_shapes_do_not_stay() -> None:
    # Else a run in bfloat16 takes more memory with every step (docs/results/memory.md).
    program = (
        "import resource, sys, torch; from sengi.train.distributed import start_world; start_world()\n"
        "left, right = torch.ones(700, 256, dtype=torch.bfloat16), torch.ones(256, 256, dtype=torch.bfloat16)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "left @ right; before = peak()\n"
        "for rows in range(100, 700): left[:rows] @ right\n"
        "print(peak() - before)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
    grown = []
    for values in (dict.fromkeys(KERNEL_CACHES, "1024"), {}):
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, env=environment | values, capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    if grown[0] < 100:
        pytest.skip(f"this processor makes no kernels for shapes: 600 of them took {grown[0]:.0f} MB")
    assert grown[1] < 0.5 * grown[0]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from sengi.train.distributed import end_world, start_world

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_world() == World(0, 1, torch.device("cpu"))
    end_world()  # harmless
