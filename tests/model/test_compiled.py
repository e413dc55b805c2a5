from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.model.families import VOCAB, family
from torch import Tensor

from sengi.conversation import Sample
from sengi.data.packs import Pack, make_pack
from sengi.model import compiled
from sengi.model.checkpointing import Dial, checkpoint_layers, transformer_layers
from sengi.model.compiled import can_compile, compile_layers, parts_left_plain
from sengi.model.supervised import SupervisedModel, prepare

CPU = torch.device("cpu")


@pytest.fixture
def compiler() -> Iterator[None]:
    """Nothing compiled so far; skips where nothing can be."""
    if cause := can_compile(CPU):
        pytest.skip(f"torch.compile does not work here: {cause}")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def pack(lengths: tuple[int, ...], shared: int = 0) -> Pack:
    draw = np.random.default_rng(len(lengths))
    rows = [draw.integers(3, VOCAB, n).astype(np.int32) for n in lengths]
    for number, row in enumerate(rows):
        row[0] = 3 + number
        row[:shared] = 5
    masks = [np.r_[np.zeros(n - 1, np.uint8), np.ones(1, np.uint8)] for n in lengths]
    return make_pack([Sample(row, mask) for row, mask in zip(rows, masks, strict=True)], lean=True)


def gradients(model: SupervisedModel, data: Pack) -> dict[str, Tensor]:
    model.zero_grad()
    loss, _ = model(data, torch.ones(len(data.targets)))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# Rule: compiled layers compute what the plain ones do, up to rounding, with shared tokens and without; one compilation
# of each serves packs of all sizes. Layers of two kinds (full and sliding attention) count as two.
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("name", "dial"), [("llama", "none"), pytest.param("gemma3", "full", marks=pytest.mark.slow)])
def test_compiled_layers_equal_plain_ones_and_are_compiled_once(name: str, dial: Dial) -> None:
    plain = prepare(copy.deepcopy(family(name)))
    model = prepare(copy.deepcopy(family(name)))
    compile_layers(transformer_layers(model))
    checkpoint_layers(transformer_layers(model), dial)
    for data in (pack((9, 12)), pack((9, 12), shared=6)):
        gradients(model, data)
    with torch.compiler.set_stance("fail_on_recompile"):
        for data in (pack((30, 7, 21)), pack((5,)), pack((14, 15, 40), shared=8)):
            expected = gradients(plain, data)
            for parameter, found in gradients(model, data).items():
                torch.testing.assert_close(found, expected[parameter], rtol=1e-3, atol=1e-5)
        with torch.no_grad():  # the plain code
            ours, theirs = (m(pack((9, 12)), torch.ones(2))[1] for m in (model, plain))
    assert torch.equal(ours, theirs)


# Rule: with FlashAttention's kernel, as on a GPU, a layer is one piece of code, made once with shared tokens and once
# without. Its stand-in has the signature of torch 2.13 and computes nothing.
def test_a_layer_is_one_piece_where_flash_attention_is_taken(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("sengi_tests::variable_length", mutates_args=())
    def kernel(query: Tensor, key: Tensor, longest: int, scale: float) -> Tensor:
        return query + key.mean() * scale

    kernel.register_fake(lambda query, key, longest, scale: torch.empty_like(query))
    kernel.register_autograd(lambda _, grad: (grad, None, None, None))

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        return kernel(query, key, max_q, scale)

    model = prepare(copy.deepcopy(family("llama")))
    monkeypatch.setattr("sengi.model.attention.takes_flash", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    compile_layers(transformer_layers(model))
    torch._dynamo.utils.counters.clear()
    with torch.autocast("cpu", torch.bfloat16):
        for data in (pack((9, 12)), pack((9, 12), shared=6)):
            gradients(model, data)
        with torch.compiler.set_stance("fail_on_recompile"):
            for data in (pack((30, 7, 21)), pack((14, 15, 40), shared=8)):
                gradients(model, data)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_names_of_parameters_stay() -> None:
    model = prepare(copy.deepcopy(family("llama")))
    before = [name for name, _ in model.named_parameters()]
    compile_layers(transformer_layers(model))
    assert [name for name, _ in model.named_parameters()] == before


# Rule: what a compiler cannot do is no reason to stop: it runs as it is, and is counted.
def test_a_part_that_does_not_compile_runs_as_it_is(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("this compiler gives up")

    plain, model = (prepare(copy.deepcopy(family("llama"))) for _ in range(2))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    compile_layers(transformer_layers(model))
    before = parts_left_plain()
    found, expected = (gradients(each, pack((9, 12))) for each in (model, plain))
    assert parts_left_plain() > before
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad)


def test_a_compiler_that_fails_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(compiled.torch, "compile", broken)
    assert can_compile(CPU) == "no C++ compiler"
