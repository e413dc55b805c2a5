from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import FAMILIES, family
from tests.model.tiny_folder import tiny_model, tiny_tokenizer, write_tiny_folder
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedModel

from sengi.errors import InputError, NonFiniteError
from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.paged_cache import BLOCK, PagedCache, blocks_of
from sengi.inference.stream import stream_reply

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model(len(TOKENIZER))
GENERATOR = Generator(MODEL, TOKENIZER)


def ids(count: int, seed: int, vocab: int = 200) -> list[int]:
    return torch.randint(4, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_transformers(model: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """What transformers' own generate writes, one prompt at a time."""
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=[2], pad_token_id=3)
    generating: Any = model
    output = generating.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), generation_config=config
    )
    return [token for token in output[0, len(prompt) :].tolist() if token != 2]


def text(new: list[int]) -> str:
    return str(TOKENIZER.decode(new, skip_special_tokens=True))


# The rule of the part: every family, whatever the batches and whatever is shared, writes what generate writes alone.
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_texts_equal_transformers(name: str) -> None:
    model = family(name)
    generator = Generator(model, TOKENIZER)
    assert generator.shares_steps
    shared = ids(20, 0)
    prompts = [*(shared + ids(1 + 3 * i, i) for i in range(40)), *(ids(2 + 5 * i, i) for i in range(4))]
    prompts = [prompts[i] for i in (0, 3, 5, 1, 40, 41, 42, 43)]
    requests = [GenerationRequest(prompt, 2 + 2 * i) for i, prompt in enumerate(prompts)]
    expected = [text(by_transformers(model, r.prompt, r.max_new_tokens)) for r in requests]
    for batch_tokens in (1, 100, 4096):
        assert generator.generate(requests, batch_tokens=batch_tokens) == expected


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 5), st.integers(1, 12)), max_size=7),
    st.integers(1, 400),
)
def test_any_requests_equal_transformers(drawn: list[tuple[bool, int, int, int]], batch_tokens: int) -> None:
    shared = ids(30, 9)
    requests = [GenerationRequest(shared * prefixed + ids(n, seed), new) for prefixed, n, seed, new in drawn]
    expected = [text(by_transformers(MODEL, r.prompt, r.max_new_tokens)) for r in requests]
    assert GENERATOR.generate(requests, batch_tokens=batch_tokens) == expected


def test_a_family_without_a_paged_cache_runs_one_at_a_time() -> None:
    torch.manual_seed(0)
    size = len(TOKENIZER)
    model = MambaForCausalLM(MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=8)).eval()
    generator = Generator(model, TOKENIZER)
    assert not generator.shares_steps
    prompts = [ids(5 + i, i) for i in range(3)]
    expected = [text(by_transformers(model, prompt, 8)) for prompt in prompts]
    assert generator.generate([GenerationRequest(prompt, 8) for prompt in prompts]) == expected


# A rope that changes with the length must not see the neighbours' lengths.
def test_a_rope_that_changes_with_length() -> None:
    model = tiny_model(len(TOKENIZER))
    config = model.config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config.max_position_embeddings = 64
    changed = type(model)(config).eval()
    changed.load_state_dict(model.state_dict())
    changed.config.max_position_embeddings = 256
    generator = Generator(changed, TOKENIZER)
    prompts = [ids(n, n) for n in (10, 55, 100, 70)]
    expected = [text(by_transformers(changed, prompt, 12)) for prompt in prompts]
    assert generator.generate([GenerationRequest(prompt, 12) for prompt in prompts]) == expected


# What goes through the model: a shared prefix once, each prompt's own tokens once, and each written token once. A
# finished row costs nothing more.
def test_no_token_is_computed_twice_and_finished_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    handle = MODEL.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    shared = ids(200, 1)
    requests = [GenerationRequest(shared + ids(3 + i, i), new) for i, new in enumerate((1, 30, 2, 25, 4, 3))]
    try:
        GENERATOR.generate(requests, batch_tokens=302)
    finally:
        handle.remove()
    written = [len(by_transformers(MODEL, r.prompt, r.max_new_tokens)) for r in requests]
    assert written == [r.max_new_tokens for r in requests]  # none met a stop token, or the sum would differ
    assert sum(seen) == 200 + sum(3 + i for i in range(6)) + sum(n - 1 for n in written)
    # (302 - 200) over 34, the longest
    assert max(n for n in seen if n < 4) == 3
    assert len(seen) < 1 + 6 + sum(n - 1 for n in written)


@dataclass
class Watched:
    """What went through a cache: tokens in its blocks after each call, and rows of each step."""

    kept: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched, leave, enter = Watched(), PagedCache.leave, PagedCache.enter

    def after(self: PagedCache) -> None:
        leave(self)
        watched.kept.append(self.prefix + sum(BLOCK * blocks_of(length) for length in self.lengths))

    def before(self: PagedCache, kind: str, tokens: int) -> None:
        enter(self, kind, tokens)
        if kind == "step":
            watched.rows.append(len(self.lengths))

    monkeypatch.setattr(PagedCache, "leave", after)
    monkeypatch.setattr(PagedCache, "enter", before)
    return watched


# Twelve texts of up to 90 tokens in room for four and a half, where short ones came before: some leave half-written
# and come again, and none is changed by it. Drawn ones go on drawing where they were.
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_budget_is_kept(watched: Watched, temperature: float) -> None:
    shared = ids(40, 1)
    short = [GenerationRequest(shared + ids(20, i), 2, temperature=temperature, seed=i) for i in range(8)]
    long = [GenerationRequest(shared + ids(10, 9 + i), 80, temperature=temperature, seed=i) for i in range(12)]
    texts = GENERATOR.generate([*long, *short], batch_tokens=40 + 400)
    assert max(watched.kept) <= 40 + 400
    seen, calls = list(watched.rows), len(watched.kept)
    assert texts == [GENERATOR.generate([request])[0] for request in (*long, *short)]
    assert max(seen) > 4
    assert calls > len(seen) + 1 + len(long) + len(short)  # rows were read a second time


# Room is not held free for text that does not come: as soon as texts turn out short, more are written at a time.
def test_more_rows_where_texts_are_short(watched: Watched) -> None:
    prompt = ids(12, 3)
    stop = text(by_transformers(MODEL, prompt, 40))[7:9]
    GENERATOR.generate([GenerationRequest(prompt, 200, (stop,)) for _ in range(40)], batch_tokens=400)
    assert watched.rows[0] <= 6
    assert max(watched.rows) >= 8
    assert max(watched.kept) <= 400


def test_stop_strings_cut_the_text() -> None:
    prompt = ids(12, 3)
    free = GENERATOR.generate([GenerationRequest(prompt, 40)])[0]
    assert len(free) > 20
    for stop in (free[7:9], free[10:16], free[3]):
        assert GENERATOR.generate([GenerationRequest(prompt, 40, (stop,))])[0] == free.split(stop)[0]
    # The first of several, wherever it stands in the list; what never comes cuts nothing.
    first, second = free[6:8], free[12:14]
    expected = free[: min(free.index(first), free.index(second))]
    for stops in ((first, second), (second, first), ("", "never seen", second, first)):
        assert GENERATOR.generate([GenerationRequest(prompt, 40, stops)])[0] == expected
    assert GENERATOR.generate([GenerationRequest(prompt, 40, ("never seen", ""))])[0] == free


# A stop string that has come ends the row: the model is asked for no more tokens than needed to see it.
def test_a_stop_string_ends_the_row() -> None:
    prompt = ids(12, 3)
    new = by_transformers(MODEL, prompt, 40)
    stop = text(new)[7:9]
    needed = next(n for n in range(1, 41) if stop in text(new[:n]))
    calls: list[int] = []
    handle = MODEL.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        GENERATOR.generate([GenerationRequest(prompt, 40, (stop,))])
    finally:
        handle.remove()
    assert len(calls) == needed < 40


# The text of a special token works as a stop string, and no special token is ever in a text.
def test_special_tokens() -> None:
    prompt = ids(12, 3)
    new = by_transformers(MODEL, prompt, 12)
    tokenizer = tiny_tokenizer()
    word = tokenizer.convert_ids_to_tokens(new[4])
    tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    assert new[4] in tokenizer.all_special_ids
    generator = Generator(MODEL, tokenizer)
    free = generator.generate([GenerationRequest(prompt, 12)])[0]
    assert free == tokenizer.decode(new, skip_special_tokens=True) != tokenizer.decode(new)
    cut = generator.generate([GenerationRequest(prompt, 12, (tokenizer.decode([new[4]]),))])[0]
    assert cut == tokenizer.decode(new[: new.index(new[4])])


# Stop tokens: the eos of model and tokenizer; the model's other settings do not act.
def test_stop_tokens_and_the_models_own_settings() -> None:
    prompt = ids(12, 3)
    new = by_transformers(MODEL, prompt, 12)
    closing = next(token for token in new[2:] if token not in new[:2])
    own = MODEL.generation_config
    try:
        MODEL.generation_config = GenerationConfig(
            eos_token_id=[2, closing], repetition_penalty=50.0, do_sample=True, temperature=9.0
        )
        got = Generator(MODEL, TOKENIZER).generate([GenerationRequest(prompt, 12)])
        assert MODEL.generation_config.repetition_penalty == 50.0
    finally:
        MODEL.generation_config = own
    assert got == [text(new[: new.index(closing)])]


def _state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# Training goes on after an evaluation as if there had been none: no random state moves, drawn or greedy.
def test_sampling_repeats_itself_and_moves_no_random_state() -> None:
    prompt = ids(10, 4)
    requests = [GenerationRequest(prompt, 12, temperature=1.0, top_p=0.95, seed=seed) for seed in (0, 1, 2, 0)]
    requests.append(GenerationRequest(prompt, 12))
    before = _state()
    generator = Generator(MODEL, TOKENIZER)
    texts = generator.generate(requests)
    assert _state() == before
    assert generator.generate(requests) == texts
    assert texts[0] == texts[3]
    assert len(set(texts)) == 4
    assert texts[4] == text(by_transformers(MODEL, prompt, 12))
    torch.manual_seed(123)
    assert generator.generate(requests, batch_tokens=1) == texts


def test_the_model_is_left_as_it_was() -> None:
    before = MODEL.config._attn_implementation, MODEL.config.use_cache, MODEL.training

    def interrupted(indices: list[int], texts: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GENERATOR.generate([GenerationRequest(ids(5, 1), 3)], on_generated=interrupted)
    assert (MODEL.config._attn_implementation, MODEL.config.use_cache, MODEL.training) == before
    assert all(not parameter.is_inference() for parameter in (*MODEL.parameters(), *MODEL.buffers()))


# What is finished is handed on at once and once: an interruption loses only the rows under way.
def test_texts_come_as_they_are_finished() -> None:
    requests = [GenerationRequest(ids(4 + i, i), new) for i, new in enumerate((20, 2, 15, 2, 3, 9))]
    got: list[tuple[int, str]] = []
    calls: list[list[int]] = []

    def on_generated(indices: list[int], texts: list[str]) -> None:
        calls.append(list(indices))
        got.extend(zip(indices, texts, strict=True))

    texts = GENERATOR.generate(requests, batch_tokens=100, on_generated=on_generated)
    assert sorted(got) == list(enumerate(texts))
    assert len(calls) >= 3
    assert all(calls)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (GenerationRequest([], 5), "request 1: its prompt has no token"),
        (GenerationRequest([5], 0), "request 1: max_new_tokens is 0; set it to 1 or more"),
        (GenerationRequest([5] * 256, 1), "request 1: its prompt has 256 tokens and the model reads at most 256"),
        (GenerationRequest([5], 5, temperature=-0.5), "request 1: temperature is -0.5; set it to 0 or more"),
        (GenerationRequest([5], 5, temperature=float("nan")), "request 1: temperature is nan"),
        (GenerationRequest([5], 5, top_p=0.0), "request 1: top_p is 0.0; set it above 0"),
    ],
)
def test_bad_requests_are_named(request_: GenerationRequest, words: str) -> None:
    with pytest.raises(InputError, match=words):
        GENERATOR.generate([GenerationRequest([5], 5), request_])


def test_other_bad_calls() -> None:
    with pytest.raises(InputError, match="batch_tokens is 0"):
        GENERATOR.generate([GenerationRequest([5], 5)], batch_tokens=0)
    training = tiny_model(len(TOKENIZER)).train()
    with pytest.raises(ValueError, match=r"training mode.*call eval\(\)"):
        Generator(training, TOKENIZER)
    assert GENERATOR.generate([]) == []


# A text ends where the model's context ends.
def test_the_context_bounds_the_text() -> None:
    prompt = ids(250, 1)
    assert GENERATOR.generate([GenerationRequest(prompt, 100)]) == [text(by_transformers(MODEL, prompt, 6))]


# lm-eval's own backend, one prompt at a time, is the reference of the scores.
def test_texts_equal_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's hf backend needs it")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    folder = write_tiny_folder(tmp_path / "tiny")
    lm = huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    prompts = ["What is the capital of France?", "12 + 30 =", "a dog, a cat", "user: naïve"]
    until = ["a", "\n\n", "th"]
    kwargs = {"until": until, "max_gen_toks": 24, "do_sample": False}
    instances = [Instance("generate_until", {}, (p, kwargs), i) for i, p in enumerate(prompts)]
    expected = lm.generate_until(instances, disable_tqdm=True)
    requests = [GenerationRequest(lm.tok_encode(p), 24, (*until, "<|im_end|>")) for p in prompts]
    assert Generator(lm.model, lm.tokenizer).generate(requests) == expected
    assert len(set(expected)) > 1


@pytest.mark.cuda
def test_texts_on_cuda_equal_those_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    shared = ids(40, 1)
    requests = [GenerationRequest(shared + ids(3 + i, i), 4 + 3 * i) for i in range(6)]
    requests.append(GenerationRequest(shared, 12, temperature=1.0, seed=4))
    generator = Generator(tiny_model(len(TOKENIZER)).cuda(), TOKENIZER)
    texts = generator.generate(requests, batch_tokens=200)
    assert generator.shares_steps
    assert texts[:-1] == GENERATOR.generate(requests[:-1], batch_tokens=200)
    assert generator.generate(requests, batch_tokens=200) == texts


# A token of NaN would be token 0: a text that looks like any bad model's.
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("paged", [True, False])
def test_a_broken_model_writes_nothing(temperature: float, paged: bool) -> None:
    model = tiny_model(len(TOKENIZER))
    generator = Generator(model, TOKENIZER)
    generator.shares_steps = paged
    model.get_parameter("model.norm.weight").data[3] = float("nan")
    with pytest.raises(NonFiniteError, match="the model's logits are NaN or infinite"):
        generator.generate([GenerationRequest([5, 6], 4, temperature=temperature)])
    with pytest.raises(NonFiniteError, match="the model's logits"):
        list(stream_reply(model, TOKENIZER, [{"role": "user", "content": "Hi"}], temperature=temperature))
