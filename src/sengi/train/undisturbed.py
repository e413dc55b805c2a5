"""Work inside a training process that must not change the training by a bit.

Libraries that score models seed the generators (lm-eval seeds all of them), switch gradients off and change how
matrices are multiplied. What is global in a process and reaches a step is put back here, whatever the work did.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore random state (Python, NumPy, torch, every GPU), number types, modes and environment at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    modes = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    environment = dict(os.environ)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
            torch.cuda.empty_cache()  # what the scored model held; training may need it
        torch.set_default_dtype(modes[0])
        torch.set_grad_enabled(modes[1])
        torch.set_num_threads(modes[2])
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = cudnn
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        os.environ.clear()
        os.environ.update(environment)
