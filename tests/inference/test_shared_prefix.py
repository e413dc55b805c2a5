from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.inference.shared_prefix import GROUP_COST, MIN_PREFIX, prefix_groups

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


# Whatever the prompts: each is in one group, begins as its group says, and has a token of its own after that.
@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), TOKENS), max_size=12), st.integers(0, 300))
def test_groups_are_a_partition_that_share_what_they_say(drawn: list[tuple[int, list[int]]], length: int) -> None:
    prompts = [[which] * length + own for which, own in drawn]
    groups = prefix_groups(prompts)
    assert sorted(i for group in groups for i in group.indices) == list(range(len(prompts)))
    for group in groups:
        beginnings = {tuple(prompts[i][: group.prefix]) for i in group.indices}
        assert len(beginnings) == 1
        assert all(len(prompts[i]) > group.prefix for i in group.indices)
        assert group.prefix == 0 or group.prefix >= MIN_PREFIX


# Few-shot prompts of several tasks behind one system prompt: a group a task, and its examples are shared whole.
def test_each_task_keeps_its_examples() -> None:
    system = [9] * 30
    tasks = [system + [task] * 400 for task in range(3)]
    prompts = [tasks[i % 3] + [50 + i, 7] for i in range(12)]
    groups = prefix_groups(prompts)
    assert [group.prefix for group in groups] == [430] * 3
    assert sorted(group.indices for group in groups) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


# Small savings do not tear the batch apart.
def test_what_shares_little_stays_together() -> None:
    system = [9] * 30
    prompts = [system + [i // 2] * (GROUP_COST // 10) + [i] for i in range(8)]
    assert [(group.prefix, group.indices) for group in prefix_groups(prompts)] == [(30, list(range(8)))]
    # A prompt unlike all others is no reason to share nothing.
    groups = prefix_groups([*([[1] * 700 + [i] for i in range(4)]), [2, 3]])
    assert [(group.prefix, group.indices) for group in groups] == [(700, [0, 1, 2, 3]), (0, [4])]


def test_equal_prompts_keep_a_token_each() -> None:
    assert [(g.prefix, g.indices) for g in prefix_groups([[5] * 100] * 3)] == [(99, [0, 1, 2])]
    assert [(g.prefix, g.indices) for g in prefix_groups([[5] * 100])] == [(0, [0])]
    assert prefix_groups([]) == []
