"""What a micro-batch keeps in memory, found by running the model's own code on tensors without content.

Under ``FakeTensorMode`` every operation computes shapes and types only: no weight is read, nothing is multiplied. A
dispatch mode counts the bytes of the storages that are alive after each operation, so the figure follows the family,
the attention function, autocast and activation checkpointing by itself. What an operation allocates and frees inside
itself is not seen.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedModel

from sengi.conversation import Sample
from sengi.data.packs import Pack, make_pack
from sengi.model.attention import make_padding_free, takes_flash
from sengi.model.checkpointing import Dial, checkpoint_layers, transformer_layers
from sengi.model.supervised import SupervisedModel

# The parts of a micro-batch in order; the most bytes alive in each grow linearly with the number of layers
PHASES = ("forward", "loss head", "loss head backward", "backward", "embedding backward")
LONGEST_PERIOD = 8  # layers after which the kinds of layers of a model repeat, at most (Gemma 3: 6)


@dataclass(frozen=True)
class MicroBatch:
    """Bytes of one micro-batch, beside the model and what was there before.

    Attributes:
        saved: alive when the forward pass reaches the loss head: what the layers keep.
        peaks: most bytes alive at once in each of PHASES; gradients made on the way are counted.
    """

    saved: float
    peaks: dict[str, float]

    def extended(self, other: MicroBatch, layers: float) -> MicroBatch:
        """This trace moved on along the line to ``other``: ``layers`` times as far as ``other`` is."""
        return MicroBatch(
            self.saved + (other.saved - self.saved) * layers,
            {phase: self.peaks[phase] + (other.peaks[phase] - self.peaks[phase]) * layers for phase in PHASES},
        )

    def with_less(self, share: float) -> MicroBatch:
        """The same where the layers keep this share less, until the end of the backward pass."""
        less = share * self.saved
        peaks = {phase: max(0.0, peak - less) for phase, peak in self.peaks.items()}
        return MicroBatch(self.saved - less, peaks | {PHASES[-1]: self.peaks[PHASES[-1]]})


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations under it have made and that are still alive.

    Attributes:
        now: bytes alive.
        phase: name under which operations are counted from now on.
        peaks: most bytes alive at once, by phase.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.phase = PHASES[0]
        self.peaks: dict[str, int] = {}
        self._alive: dict[int, tuple[Any, int]] = {}
        for tensor in known:
            self._see(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._see(value)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.now)
        return result

    def _see(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            size = storage.nbytes() if counted else 0
            self._alive[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)
            self.now += size

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)[1]


def trace_model(
    config: Any,
    adapt: Callable[[PreTrainedModel], None],
    samples: Sequence[Sample],
    dial: Dial,
    device: torch.device,
    autocast: torch.dtype | None,
    adds_at_once: bool = False,
) -> MicroBatch:
    """Bytes of forward and backward of one micro-batch of a whole model, from two traces of a few of its layers.

    Args:
        config: of transformers; it is not changed.
        adapt: makes of the plain model what is trained (freezes it, adds an adapter); may do nothing.
        samples: of the micro-batch; what they share is computed once, as in training.
        dial: activation checkpointing.
        device: of the training.
        autocast: dtype of the computation, or None.
        adds_at_once: whether training will call :meth:`SupervisedModel.add_gradients_at_once`.
    """
    text = config.get_text_config()
    layers, period = int(text.num_hidden_layers), _period(getattr(text, "layer_types", None))

    def traced(count: int) -> MicroBatch:
        def build() -> PreTrainedModel:
            lm = AutoModelForCausalLM.from_config(_with_layers(config, count), dtype=torch.float32)
            adapt(lm)
            return lm

        return trace_micro_batch(build, samples, dial, device, autocast, adds_at_once)

    # one layer alone is first and last in one, which is not like the others
    few, more = max(2, period), max(2, period) + period
    if layers <= more:
        return traced(layers)
    return traced(few).extended(traced(more), (layers - few) / (more - few))


def _period(kinds: list[str] | None) -> int:
    """Layers after which the kinds of layers repeat; 1 where all are alike, or nothing repeats."""
    if not kinds:
        return 1
    periods = range(1, LONGEST_PERIOD + 1)
    return next((p for p in periods if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))), 1)


def _with_layers(config: Any, count: int) -> Any:
    """A copy of ``config`` with the first ``count`` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:  # layer_types and its like
            setattr(text, key, value[:count])
    text.num_hidden_layers = count
    return config


def trace_micro_batch(
    build: Callable[[], PreTrainedModel],
    samples: Sequence[Sample],
    dial: Dial,
    device: torch.device,
    autocast: torch.dtype | None,
    adds_at_once: bool = False,
) -> MicroBatch:
    """Bytes of forward and backward of one micro-batch that is not a step's first: gradients are there, not counted.

    Args:
        build: makes the model on the default device, which is "meta": peft moves the layers it wraps, and fake tensors
            cannot be moved in place.
        samples: of the micro-batch.
        dial: activation checkpointing.
        device: of the training.
        autocast: dtype of the computation, or None.
        adds_at_once: whether training will call :meth:`SupervisedModel.add_gradients_at_once`.
    """
    with torch.device("meta"):
        lm = build().eval()
    pack = make_pack(samples, lean=not _carries_state(lm))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(device):
            _move(lm, device)
            make_padding_free(lm)
            model = SupervisedModel(lm)
            if adds_at_once:
                model.add_gradients_at_once()
            checkpoint_layers(transformer_layers(model), dial)
            pack = _emptied(pack, device, read_bounds=not _takes_flash(lm.config.get_text_config(), device, autocast))
            weights = torch.empty(len(pack.targets))
            trained = [p for p in lm.parameters() if p.requires_grad]
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        known = [*lm.parameters(), *lm.buffers(), *(p.grad for p in trained if p.grad is not None)]
        with LiveBytes(known) as live:
            return _run(model, pack, weights, live, autocast)


def _takes_flash(config: Any, device: torch.device, autocast: torch.dtype | None) -> bool:
    """Whether attention goes through the kernel that reads no bounds on the host; tried on heads of this model."""
    size = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    of_values = getattr(config, "v_head_dim", None) or size
    query, value = (torch.empty(1, n, dtype=autocast or torch.float32, device=device) for n in (size, of_values))
    return takes_flash(query, value, getattr(config, "attn_logit_softcapping", None))


def _move(lm: PreTrainedModel, device: torch.device) -> None:
    """Put tensors without content on ``device`` in place of those on "meta"; tied ones stay tied."""
    weights = {p: torch.nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in lm.parameters()}
    for module in lm.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            module.register_parameter(name, weights[weight])
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            module._buffers[name] = torch.empty_like(buffer, device=device)


def _run(
    model: SupervisedModel, pack: Pack, weights: Tensor, live: LiveBytes, autocast: torch.dtype | None
) -> MicroBatch:
    saved = 0

    def forward_done(module: Any, args: Any, output: Any) -> None:
        nonlocal saved
        saved, live.phase = live.now, "loss head"
        output.last_hidden_state.register_hook(lambda _: setattr(live, "phase", "backward"))

    def embedded(module: Any, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: setattr(live, "phase", "embedding backward"))

    model.lm.get_decoder().register_forward_hook(forward_done)
    model.lm.get_input_embeddings().register_forward_hook(embedded)
    kind = weights.device.type
    with torch.autocast(kind, autocast) if autocast is not None else contextlib.nullcontext():
        loss, _ = model(pack, weights)
    live.phase = "loss head backward"
    loss.backward()
    return MicroBatch(saved, {phase: live.peaks.get(phase, 0) for phase in PHASES})


def _carries_state(lm: PreTrainedModel) -> bool:
    """Whether layers carry state along the row, so that its documents are computed whole: all such have convolutions.

    Training finds it out by trying (:func:`sengi.model.supervised.prepare`), which takes numbers.
    """
    return any(isinstance(module, torch.nn.Conv1d) for module in lm.modules())


def _emptied(pack: Pack, device: torch.device, read_bounds: bool) -> Pack:
    """The pack without content on ``device``; bounds stay readable where attention reads them on the host."""
    shapes = {name: value for name, value in pack.__dict__.items() if isinstance(value, Tensor)}
    if read_bounds:
        del shapes["bounds"]
    empty: dict[str, Any] = {n: torch.empty(t.shape, dtype=t.dtype, device=device) for n, t in shapes.items()}
    return replace(pack, **empty)
