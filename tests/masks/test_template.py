"""Rendering: equal to transformers' own, and under limits."""

from __future__ import annotations

import datetime
import threading

import pytest
from templates import GRANITE3, LLAMA3, MISTRAL, PHI3, QWEN3, STYLES, byte_level, tokenizer_for

from sengi.errors import MaskError, ModelError
from sengi.masks.template import ChatTemplate, TimeLimit, prepare

TODAY = datetime.date.today()
TOOL = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"b": 1, "a": 2}}}


def compiled(text: str) -> ChatTemplate:
    return ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"}, TODAY)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("ask", [True, False])
def test_rendering_equals_apply_chat_template(style, ask):
    tokenizer = tokenizer_for(STYLES[style][0], byte_level())
    today = datetime.date.today()  # not TODAY: the tests may have begun yesterday
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map, today)
    messages = [
        {"role": "user", "content": " <b>&amp; \n", "name": None},
        {"role": "assistant", "content": "ok ", "thinking": "hm", "train": False},
        {"role": "user", "content": "你好"},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert template.render(prepare(messages), None, ask) == expected


def test_tools_and_json_are_written_as_transformers_does():
    text = (
        "{{ tools | tojson(indent=2) }}{{ messages[0].content | tojson }}{% for m in messages %}{% break %}{% endfor %}"
    )
    tokenizer = tokenizer_for(text, byte_level())
    messages = [{"role": "user", "content": "<é>'"}]
    expected = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert compiled(text).render(prepare(messages), [TOOL], False) == expected


def test_dates_are_frozen():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, datetime.date(2024, 7, 26))
    assert template.uses_date
    assert template.render([{"role": "user", "content": "x"}], None, False) == "26 Jul 2024"
    assert not compiled("{{ messages[0].content }}").uses_date


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 300000000 }}",
        "{{ messages[0].content * 300000000 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
    ids=["endless", "constant", "allocation", "doubling"],
)
def test_templates_that_break_the_limits_are_refused_before_this_process_runs_them(text):
    with pytest.raises(ModelError, match=r"template_limits.*use another chat_template.jinja"):
        compiled(text)


def test_a_template_that_is_slow_for_one_row_only_is_stopped():
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = compiled("{% if messages[0].content == 'slow' %}" + loop + "{% endif %}{{ messages[0].content }}")
    with TimeLimit(0.2), pytest.raises(MaskError, match=r"did not finish in 0\.2 s") as refused:
        template.render([{"role": "user", "content": "slow"}], None, False)
    assert refused.value.reason == "template_limits"


def test_a_template_that_is_long_for_one_row_only_is_refused():
    template = compiled("{{ messages[0].content * 20000 if messages[0].content | length > 1000 }}")
    with pytest.raises(MaskError, match="split the row") as refused:
        template.render([{"role": "user", "content": "x" * 2000}], None, False)
    assert refused.value.reason == "template_limits"


def test_the_time_limit_restores_the_signal_and_does_nothing_in_threads():
    import signal

    before = signal.getsignal(signal.SIGVTALRM)
    with TimeLimit(5):
        pass
    assert signal.getsignal(signal.SIGVTALRM) is before
    errors = []

    def work():
        try:
            with TimeLimit(5):
                pass
        except Exception as error:  # signals raise ValueError outside the main thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_what_a_template_raises_is_told_on_one_line():
    with pytest.raises(MaskError, match="refused the conversation: roles must alternate") as refused:
        compiled("{{ raise_exception('roles\n must   alternate') }}").render([], None, False)
    assert refused.value.reason == "template_error"
    with pytest.raises(MaskError, match="refused the conversation"):
        compiled("{{ messages[5].content.x.y }}").render([], None, False)
    with pytest.raises(ModelError, match="does not compile, line 1"):
        compiled("{% if %}")


def test_templates_cannot_reach_python():
    template = compiled("{{ messages.__class__.__mro__ }}")
    with pytest.raises(MaskError, match="refused the conversation"):
        template.render([{"role": "user", "content": "x"}], None, False)


@pytest.mark.parametrize(
    ("text", "reads"), [(LLAMA3, False), (QWEN3, False), (PHI3, False), (MISTRAL, False), (GRANITE3, False)]
)
def test_prompts_that_depend_on_messages_are_known(text, reads):
    assert compiled(text).prompt_reads_messages is reads
    nosy = "{% set x = messages[0].content %}{% if add_generation_prompt and x %}A{% endif %}"
    assert compiled(nosy).prompt_reads_messages
