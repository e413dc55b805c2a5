from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import FAMILIES, GEMMA_2, VOCAB, family, small_model
from transformers import PreTrainedModel

from sengi.errors import InputError
from sengi.inference import loglikelihood, tree_attention
from sengi.inference.loglikelihood import LogLikelihood, Request, Scorer
from sengi.inference.prefix_tree import PrefixTree
from sengi.inference.token_logits import PlainLogits, TreeLogits, shares_prefixes

MAMBA = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 3, "intermediate_size": 64}
FALL_BACK: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", MAMBA),
    "bloom": ("BloomConfig", {"n_head": 4, "n_layer": 2}),  # attention code of its own: ALiBi
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),  # convolutions reach over a fork
}


def one_by_one(model: PreTrainedModel, request: Request) -> LogLikelihood:
    """The definition: the model's own forward over one request, float64 from the logits on."""
    context, continuation = request
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation[:-1]]]), use_cache=False).logits[0].double()
    log_probs = logits[len(context) - 1 :].log_softmax(-1)
    wanted = torch.tensor(continuation)
    total = float(log_probs.gather(1, wanted[:, None]).sum())
    return LogLikelihood(total, bool((log_probs.argmax(1) == wanted).all()))


def assert_same(found: list[LogLikelihood], model: PreTrainedModel, requests: list[Request]) -> None:
    assert_close(found, [one_by_one(model, request) for request in requests])


def assert_close(found: list[LogLikelihood], definition: list[LogLikelihood]) -> None:
    for ours, expected in zip(found, definition, strict=True):
        assert ours.sum == pytest.approx(expected.sum, abs=1e-4)
        assert ours.is_greedy == expected.is_greedy


def few_shot(prompts: int = 3, questions: int = 4, seed: int = 0) -> list[Request]:
    """Prompts of 30 tokens, questions of 8 under each, three continuations of 1 to 5 tokens for each."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(count)]

    heads = [ids(30) for _ in range(prompts)]
    asked = [head + ids(8) for head in heads for _ in range(questions)]
    return [(context, ids(rng.randint(1, 5))) for context in asked for _ in range(3)]


def with_greedy(model: PreTrainedModel, requests: list[Request]) -> list[Request]:
    """The same and, for each context, the continuation of two tokens that the model likes best."""
    more = []
    for context in {tuple(c) for c, _ in requests}:
        text = list(context)
        for _ in range(2):
            with torch.no_grad():
                text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        more.append((list(context), text[-2:]))
    return requests + more


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_their_own_forward(name: str) -> None:
    model = family(name)
    scorer = Scorer(model)
    assert scorer.shares_prefixes
    requests = with_greedy(model, few_shot(2, 3))
    definition = [one_by_one(model, request) for request in requests]
    for batch_tokens in (1, 17, 4096):
        found = scorer.score(requests, batch_tokens=batch_tokens)
        assert_close(found, definition)
        assert {score.is_greedy for score in found} == {True, False}


@pytest.mark.parametrize("name", FALL_BACK)
def test_other_families_fall_back(name: str) -> None:
    model = small_model(*FALL_BACK[name])
    scorer = Scorer(model)
    assert not scorer.shares_prefixes
    requests = few_shot(2, 2)
    assert_same(scorer.score(requests), model, requests)
    distinct = {(*context, *continuation[:-1]) for context, continuation in requests}
    whole = [t for t in distinct if not any(len(o) > len(t) and o[: len(t)] == t for o in distinct)]
    assert scorer.tokens_computed == sum(map(len, whole))  # one-token continuations are read from one forward here, too


# Chunks of logits and a vocabulary larger than a chunk change nothing, in both ways of computing.
@pytest.mark.parametrize("name", ["gemma2", "mamba"])
def test_logits_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sengi.inference.token_logits.LOGITS", 2 * VOCAB)
    model = small_model(*{**FAMILIES, **FALL_BACK}[name])
    requests = with_greedy(model, few_shot(1, 3))
    assert_same(Scorer(model).score(requests), model, requests)


# Most tokens of a text are context, whose logits nobody reads; the head is the largest product of a small model.
@pytest.mark.parametrize("chunk", [3, 100])
def test_the_head_runs_over_the_rows_that_are_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sengi.inference.token_logits.LOGITS", chunk * VOCAB)
    model, ids = family("gemma2"), [3 + n % 50 for n in range(40)]
    rows = np.array([1, 4, 5, *range(20, 40)])
    tree = PrefixTree([ids])
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, x, y: seen.append(y.shape[-2]))
    with torch.no_grad():
        [pack] = tree.packs(40, 40)
        parts = list(PlainLogits(model, tree).of(pack, rows))
        hook.remove()
        whole = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert seen == [len(rows)]
    assert [part for part, _ in parts] == [slice(i, min(i + chunk, len(rows))) for i in range(0, len(rows), chunk)]
    torch.testing.assert_close(torch.cat([logits for _, logits in parts]), whole[rows], rtol=1e-5, atol=1e-5)


token = st.integers(3, 5)  # three tokens, so that requests share, repeat and begin each other
requests_of_any_kind = st.lists(
    st.tuples(st.lists(token, min_size=1, max_size=14), st.lists(token, min_size=1, max_size=6)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=30)
@given(requests_of_any_kind, st.integers(1, 40), st.sampled_from(["llama", "gemma2"]), st.sampled_from([0, 4]))
def test_any_requests_equal_one_by_one(
    requests: list[tuple[list[int], list[int]]], batch_tokens: int, name: str, min_saved: int
) -> None:
    model = family(name)
    scorer = _scorers.setdefault(name, Scorer(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loglikelihood, "PrefixTree", lambda texts: PrefixTree(texts, min_saved))
        found = scorer.score(requests, batch_tokens=batch_tokens)
    assert_same(found, model, list(requests))


_scorers: dict[str, Scorer] = {}


# on_scored: each request exactly once, with its final score, as its last token is read.
@settings(max_examples=15)
@given(requests_of_any_kind, st.integers(1, 40))
def test_on_scored_tells_each_request_once(requests: list[tuple[list[int], list[int]]], batch_tokens: int) -> None:
    scorer = _scorers.setdefault("llama", Scorer(family("llama")))
    told: dict[int, LogLikelihood] = {}

    def on_scored(indices: list[int], results: list[LogLikelihood]) -> None:
        assert indices
        assert told.keys().isdisjoint(indices)
        told.update(zip(indices, results, strict=True))

    found = scorer.score(requests, batch_tokens=batch_tokens, on_scored=on_scored)
    assert [told[index] for index in range(len(requests))] == found


# What the design is for: a few-shot prompt is computed once, a question once, its one-token answers together.
def test_shared_beginnings_are_computed_once() -> None:
    rng = random.Random(1)
    shared = [rng.randrange(3, VOCAB) for _ in range(60)]
    asked = [[*shared, index + 3, *(rng.randrange(3, VOCAB) for _ in range(9))] for index in range(20)]
    letters = [(context, [letter]) for context in asked for letter in (10, 11, 12, 13)]
    model = family("llama")
    scorer = Scorer(model)
    head: list[int] = []  # rows of logits of each call
    hook = model.get_output_embeddings().register_forward_hook(lambda _, args, __: head.append(len(args[0])))
    scorer.score(letters)
    naive = sum(len(context) for context, _ in letters)
    assert naive == 5600
    assert scorer.tokens_computed == 60 + 20 * 10
    assert sum(head) == 20  # one row of logits a question, of the 260 tokens that are computed
    scorer.score(letters[:4])
    assert scorer.tokens_computed == 60 + 20 * 10 + 70
    hook.remove()


# The longest request is in the first call, so a lack of memory shows at once.
def test_longest_first() -> None:
    requests = [([3] * n, [4]) for n in (5, 90, 20)] + [([7] * 60, [4])]
    first: list[list[int]] = []
    Scorer(family("llama")).score(requests, batch_tokens=1024, on_scored=lambda done, _: first.append(done))
    assert 1 in first[0]


# Attention function, cache setting, hooks, training state and gradients are as before; after an error, too.
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = small_model(*FAMILIES[name])
    hooks = len(model.get_decoder()._forward_pre_hooks)
    config = model.config.to_dict()
    before = model.config._attn_implementation
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    text = torch.tensor([[5, 6, 7, 8, 9]])
    logits = model(text).logits
    scorer = Scorer(model)
    scorer.score(few_shot(1, 1))

    def fail(indices: list[int], results: list[LogLikelihood]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.score(few_shot(1, 1), on_scored=fail)
    assert model.config._attn_implementation == before
    assert model.config.to_dict() == config
    assert len(model.get_decoder()._forward_pre_hooks) == hooks
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and not p.is_inference() for p in model.parameters())
    after = model(text)
    assert torch.equal(after.logits, logits)
    after.logits.sum().backward()  # nothing was made an inference tensor


# A rope that depends on the length of the text (Phi-3's): texts that reach its limit are computed alone.
def test_a_rope_that_depends_on_the_length() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [5.0] * 4}
    model = small_model("Phi3Config", {"rope_parameters": rope, "original_max_position_embeddings": 40})
    requests = few_shot(2, 2)  # 38 to 42 tokens: on both sides of the limit
    scorer = Scorer(model)
    assert scorer.shares_prefixes
    found = scorer.score(requests)
    assert_same(found, model, requests)
    scorer._rope_limit = float("inf")
    careless = scorer.score(requests)
    assert max(abs(a.sum - b.sum) for a, b in zip(found, careless, strict=True)) > 0.01


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (([], [4]), "request 1: its context has no token"),
        (([3], []), "request 1: its continuation has no token"),
        (([3] * 120, [4] * 10), r"request 1: 129 tokens, the model reads at most 128 \(max_position_embeddings\)"),
    ],
)
def test_requests_that_cannot_be_scored(request_: Request, words: str) -> None:
    scorer = Scorer(family("llama"))
    with pytest.raises(InputError, match=words):
        scorer.score([([3], [4]), request_])
    assert scorer.tokens_computed == 0


def test_bad_batches_and_training_mode() -> None:
    model = small_model(*FAMILIES["llama"])
    with pytest.raises(InputError, match="batch_tokens is 0; a forward call needs 1 token or more"):
        Scorer(model).score([([3], [4])], batch_tokens=0)
    assert Scorer(model).score([]) == []
    with pytest.raises(ValueError, match="training mode"):
        Scorer(model.train())


# The whole of the model's context may be used: the last token of a continuation is not read.
def test_the_longest_request() -> None:
    model = family("llama")
    requests: list[Request] = [([3 + n % 50 for n in range(128)], [4]), ([5] * 100, [6] * 29)]
    assert_same(Scorer(model).score(requests), model, requests)


# Between calls one path is kept, not the keys of all prompts.
def test_kept_keys_do_not_grow_with_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    original = TreeLogits._hidden

    def watched(self: TreeLogits, pack: Any) -> torch.Tensor:
        hidden = original(self, pack)
        kept.append(self.walk.kept_bytes)
        return hidden

    scorer = Scorer(family("llama"))
    monkeypatch.setattr(TreeLogits, "_hidden", watched)
    scorer.score(few_shot(6, 6), batch_tokens=50)
    longest = max(len(c) + len(a) - 1 for c, a in few_shot(6, 6))
    assert len(kept) > 10
    assert set(kept) == {2 * 2 * 2 * longest * 8 * 4}  # layers, keys and values, heads, tokens, head size, bytes


# Were the trial blind, a broken attention would go unnoticed: it must see each way in which branches can touch.
@pytest.mark.parametrize("fault", ["no ancestors", "sees siblings", "no window"])
def test_the_trial_finds_a_wrong_attention(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tree_attention.TreeWalk.attend

    def broken(self: Any, layer: int, query: Any, key: Any, value: Any, *rest: Any) -> torch.Tensor:
        if fault == "no ancestors":
            self._paths.clear()
        if fault == "no window":
            rest = (rest[0], None, rest[2])
        if fault == "sees siblings":
            key = key.roll(1, dims=2)
        result: torch.Tensor = original(self, layer, query, key, value, *rest)
        return result

    monkeypatch.setattr(tree_attention.TreeWalk, "attend", broken)
    model = small_model("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 6, **GEMMA_2})
    scorer = Scorer(model)
    assert not scorer.shares_prefixes
    requests = few_shot(1, 1)
    assert_same(scorer.score(requests), model, requests)


# A kernel refuses heads with a RuntimeError; want of memory is one, too, but says nothing about the family.
def test_the_trial_survives_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> torch.Tensor:
        raise RuntimeError("head_size should be a multiple of 8")

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tree_attention.TreeWalk, "attend", refused)
    assert not shares_prefixes(family("llama"))
    monkeypatch.setattr(tree_attention.TreeWalk, "attend", full)
    with pytest.raises(torch.OutOfMemoryError):
        shares_prefixes(family("llama"))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    plain = small_model(*FAMILIES["llama"])
    requests = few_shot()
    model = small_model(*FAMILIES["llama"]).to("cuda", dtype)
    scorer = Scorer(model)
    assert scorer.shares_prefixes
    found = np.array([score.sum for score in scorer.score(requests)])
    expected = np.array([one_by_one(plain, request).sum for request in requests])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 if dtype == torch.float32 else 1.0)


# No more tokens at a time than the longest text alone would take, but enough for the matrix products.
@pytest.mark.parametrize(("longest", "tokens"), [(1, 128), (128, 128), (129, 256), (400, 512), (3000, 512)])
def test_tokens_of_a_call_on_a_cpu(longest: int, tokens: int) -> None:
    assert loglikelihood._cpu_tokens(longest) == tokens
