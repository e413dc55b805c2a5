"""A peer trainer in a process of its own, in the peers' environment; it imports nothing of Sengi.

    .venv-peers/bin/python benchmarks/peer_worker.py REQUEST.json

It waits before each optimizer step for a line ``step`` on standard input, and answers each step with a line of JSON:
wall and CPU seconds of the whole step (fetching and collating the batch, forward, backward, clipping, update, logging),
loss and gradient norm. Any other line ends it, with its peak memory as the last answer.

The rows it gets are token ids and labels, as TRL documents for data that is tokenized already: both sides train the
same supervised tokens. All rows are one epoch and one step, gradient accumulation reaching over all of them, so that
packing cannot change which conversations are in a step.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Beside these each setting has what is the same on both sides: precision, rate, batch and their schedule.
# "default" is what the peer does when nothing else is asked of it; the others are its documented ways to be fast.
PACKED: Mapping[str, Any] = {"packing": True, "gradient_checkpointing": False, "per_device_train_batch_size": 1}
PADDING_FREE: Mapping[str, Any] = {"padding_free": True, "max_length": None, "gradient_checkpointing": False}
SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "trl": {
        "default": {},  # 8 rows padded to the longest, activation checkpointing on, fused head
        "packed": PACKED,
        "packed_long": PACKED,  # rows as long as our micro-batches
        "packed_compiled": {**PACKED, "torch_compile": True},
        "unpadded": {**PADDING_FREE, "per_device_train_batch_size": 1},
        "flattened": {**PADDING_FREE, "per_device_train_batch_size": 4},
    },
    "hf": {
        "default": {},  # 8 rows padded to the longest, whole logits
        "unpadded": {"per_device_train_batch_size": 1},
        "flattened": {"per_device_train_batch_size": 4},  # DataCollatorWithFlattening
    },
}


class Line:
    """The line to the benchmark: what libraries print must not get into it, so it is a copy of standard output."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._wall = self._cpu = 0.0

    def say(self, facts: Mapping[str, Any]) -> None:
        """Send a line of JSON."""
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()

    def wait(self) -> None:
        """Wait to be asked for a step, or end the process."""
        if sys.stdin.readline().strip() != "step":
            self.say({"peak_bytes": peak_bytes()})
            os._exit(0)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def done(self, **facts: Any) -> None:
        """Answer with the step that was asked for last."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.say({"seconds": wall, "cpu_seconds": cpu, **facts})


def peak_bytes() -> int:
    """Most memory this process had: the allocator's on a GPU, the resident set on a CPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer's configuration is given: the common part, then the setting's own."""
    import torch

    bfloat16 = request["dtype"] == "bfloat16"
    common = {
        "output_dir": tempfile.mkdtemp(prefix="sengi-peer-"),
        "bf16": bfloat16,
        "use_cpu": not torch.cuda.is_available(),  # bf16 is refused on a CPU that was not asked for
        "gradient_accumulation_steps": request["rows"],
        "num_train_epochs": 1000,
        "learning_rate": request["learning_rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if request["peer"] == "trl":
        common["max_length"] = request["max_tokens" if request["setting"] == "packed_long" else "max_length"]
    return {**common, **SETTINGS[request["peer"]][request["setting"]]}


def trainer(request: Mapping[str, Any]) -> Any:
    """The peer's trainer, ready to train."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in Path(request["data"]).read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list(rows)
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    model.config.use_cache = False
    values = arguments(request)
    if request["peer"] == "trl":
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(model, SFTConfig(**values), train_dataset=dataset, processing_class=tokenizer)
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

    padded = request["setting"] == "default"
    collator = DataCollatorForSeq2Seq(tokenizer) if padded else DataCollatorWithFlattening()
    return Trainer(model, TrainingArguments(**values), train_dataset=dataset, data_collator=collator)


def counts(found: Any) -> dict[str, int]:
    """What the peer's own collator makes of the rows: tokens, places with padding, targets, micro-batches."""
    result = {"tokens": 0, "places": 0, "targets": 0, "micro_batches": 0}
    for batch in found.get_train_dataloader():
        ids, labels = batch["input_ids"], batch["labels"]
        result["places"] += ids.numel()
        result["tokens"] += int(batch["attention_mask"].sum()) if "attention_mask" in batch else ids.numel()
        result["targets"] += int((labels[:, 1:] != -100).sum())
        result["micro_batches"] += 1
    return result


def main() -> None:
    """Train as long as steps are asked for."""
    line = Line()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch
    from transformers import TrainerCallback

    found = trainer(request)
    packages = ("torch", "transformers", "accelerate", *(["trl"] if request["peer"] == "trl" else []))
    facts = {
        **counts(found),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "attention": found.model.config._attn_implementation,
    }

    class Turns(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            line.say(facts)
            line.wait()

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            logs: Mapping[str, Any] = kwargs["logs"]
            if "loss" in logs:
                line.done(loss=logs["loss"], grad_norm=logs["grad_norm"])
                line.wait()

    found.add_callback(Turns())
    found.train()


if __name__ == "__main__":
    main()
