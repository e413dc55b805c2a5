"""Versions and hardware, for environment.json and bug reports. An allow-list: no environment variable by default."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # there where the kernel knows them
KERNELS = 64  # more than a micro-batch uses in turn
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and PyTorch's before it
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "pyarrow", "pydantic", "sengi")
VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "WORLD_SIZE",
    "HF_HUB_OFFLINE",
    "SENGI_CACHE",
    "THP_MEM_ALLOC_ENABLE",
    *KERNEL_CACHES,
)


def ask_for_huge_pages() -> None:
    """Let PyTorch take blocks of 2 MiB or more at whole pages, as huge ones where the kernel has them.

    Blocks at multiples of 64 bytes, as it takes them otherwise, leave holes in glibc's heap that no block of their own
    size fits (docs/results/memory.md). PyTorch looks at the variable at its first allocation. A value that is set
    stays.
    """
    if HUGE_PAGES.is_dir():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_few_kernels() -> None:
    """Let PyTorch keep the last ``KERNELS`` kernels that oneDNN made for matrix products, not 1,024 twice.

    In half precision it makes one for every shape, of 0.5 to 1.5 MB, and hardly two micro-batches have the same number
    of tokens: memory grew by half over 24 steps, and training was slower (docs/results/memory.md). Looked at before the
    first product. Values that are set stay.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))


def describe_environment() -> dict[str, Any]:
    """A nested dict of strings and numbers."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "cuda": {"available": torch.cuda.is_available(), "version": torch.version.cuda or ""},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    if torch.cuda.is_available():
        facts["cuda"]["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
