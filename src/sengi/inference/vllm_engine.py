"""Generation through vLLM, where it is installed: its kernels and scheduler are the fastest on CUDA.

vLLM loads the weights of a folder a second time, so the folder must hold the model that is meant: it is used only
where the caller names the folder.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.inference.generation_request import GenerationRequest

_welcome = ContextVar("vllm_is_welcome", default=True)
CHUNK = 256  # requests a call: what is finished is handed on after each, so that an interruption loses little
MEMORY = 0.9  # share of the device memory that is still free which vLLM may take


def use_vllm(engine: str, folder: Path | None, device: torch.device) -> bool:
    """Whether vLLM is to write the texts.

    Args:
        engine: ``auto`` takes vLLM where it is installed, the model is on CUDA, ``folder`` is known and this process
            is the only one (every vLLM would take the first GPU); ``transformers`` never does, ``vllm`` always.
            Inside :func:`without_vllm` ``auto`` is ``transformers``.
        folder: holds the weights that the model has.
        device: of the model.

    Raises:
        InputError: an unknown engine, or vLLM was asked for and cannot be used.
    """
    if engine not in ("auto", "transformers", "vllm"):
        raise InputError(f"engine is {engine!r}; it is one of auto, transformers, vllm")
    missing = [
        reason
        for reason, holds in (
            ("vllm is not installed (pip install vllm)", importlib.util.find_spec("vllm") is None),
            (f"the model is on {device.type}, vllm needs cuda", device.type != "cuda"),
            ("the folder of the model is not given (folder=...)", folder is None),
        )
        if holds
    ]
    if engine == "vllm" and missing:
        raise InputError(f"engine is 'vllm', but {'; '.join(missing)}; or take engine='transformers'")
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return engine == "vllm" or (engine == "auto" and not missing and alone and _welcome.get())


@contextmanager
def without_vllm() -> Iterator[None]:
    """Let ``auto`` never take vLLM: where a training runs, the memory that is free now is its own a moment later."""
    token = _welcome.set(False)
    try:
        yield
    finally:
        _welcome.reset(token)


class VllmEngine:
    """vLLM with the weights of a folder.

    Args:
        folder: a model folder.
        dtype: of the weights.
        stops: tokens that end a text.
        longest: tokens of the longest prompt and its text: vLLM wants room for the keys of one whole context, and that
            of many a model is far longer than what is asked here.

    Raises:
        Exception: whatever vLLM raises where it cannot start, for example for want of memory.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, stops: Iterable[int], longest: int) -> None:
        import vllm

        self.longest = longest
        free, total = torch.cuda.mem_get_info()
        self._sampling: Callable[..., Any] = vllm.SamplingParams
        self._stops = sorted(stops)
        # generation_config="vllm": the folder's own temperature or repetition penalty is not what is measured.
        self._llm = vllm.LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            generation_config="vllm",
            enable_prefix_caching=True,
            gpu_memory_utilization=MEMORY * free / total,
            max_model_len=longest,
        )

    def generate(
        self, requests: Sequence[GenerationRequest], limits: Sequence[int]
    ) -> Iterator[tuple[list[int], list[str]]]:
        """Write a text for every request.

        Args:
            requests: what to write.
            limits: longest text of each, in tokens.

        Yields:
            Indices and texts of the requests of each chunk, up to and without the first stop.
        """
        for start in range(0, len(requests), CHUNK):
            indices = list(range(start, min(start + CHUNK, len(requests))))
            outputs = self._llm.generate(
                [{"prompt_token_ids": requests[i].prompt} for i in indices],
                [self._parameters(requests[i], limits[i]) for i in indices],
                use_tqdm=False,
            )
            yield indices, [output.outputs[0].text for output in outputs]

    def _parameters(self, request: GenerationRequest, limit: int) -> Any:
        return self._sampling(
            max_tokens=limit,
            stop=[text for text in request.stop if text],
            stop_token_ids=self._stops,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            skip_special_tokens=True,
        )
