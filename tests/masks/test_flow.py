"""The proof that a template only copies texts: given for the families' templates, refused for other uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from templates import REPARSES, STYLES
from transformers.utils import chat_template_utils

from sengi.masks.flow import content_guards

SHARED = Path(__file__).parents[2] / "../shared/tokenizers"


def guards(template: str) -> tuple[str, ...] | None:
    compiled = chat_template_utils._compile_jinja_template(template)
    return content_guards(compiled.environment.parse(template))


def each(body: str) -> str:
    return "{% for message in messages %}" + body + "{% endfor %}"


@pytest.mark.parametrize("style", STYLES)
def test_families_are_proven(style: str) -> None:
    # Qwen3 looks for its think marks, and for nothing else
    assert guards(STYLES[style][0]) == (("</think>", "<think>") if style == "qwen3" else ())


@pytest.mark.skipif(not SHARED.exists(), reason="needs real tokenizers")
def test_real_templates_are_proven() -> None:
    found = {}
    for path in SHARED.glob("*/tokenizer_config.json"):
        if template := json.loads(path.read_text()).get("chat_template"):
            found[path.parent.name] = guards(template)
    assert found.pop("qwen3") == ("</think>", "</tool_response>", "<think>", "<tool_response>")
    assert set(found.values()) == {()}


@pytest.mark.parametrize(
    "body",
    [
        "{{ message.content }}",
        "{{ message['content'] | trim }}",
        "{{ message.get('content') }}",
        "{% if message.content %}{{ '<' ~ message.content.strip('\n') ~ '>' }}{% endif %}",
        "{% set text = message.content if message.role == 'user' else '' %}{{ text }}",
        "{% if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}",
        "{% if message.tool_calls %}{{ message | tojson }}{% endif %}{{ message.content }}",
        "{% if 'tool_calls' in message %}{{ message | tojson }}{% endif %}{{ message.content }}",
        "{% if loop.previtem and loop.previtem.role == 'user' %}x{% endif %}{{ message.content }}",
        "{% macro say(text) %}[{{ text }}]{% endmacro %}{{ say(message.content) }}",
        "{% set ns = namespace(last='') %}{% set ns.last = message.content %}{{ ns.last }}",
        "{% set block %}{{ message.content }}{% endset %}{{ block | trim }}",
        "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ users[0].content }}",
    ],
)
def test_copies_are_proven(body: str) -> None:
    assert guards(each(body)) == ()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{% if 'A' in message.content %}a{% endif %}", ("A",)),
        ("{% if message.content.startswith('A') or message.content == 'B' %}a{% endif %}", ("A", "B")),
        ("{{ message.content.split('A')[-1].lstrip('\n') }}", ("A",)),
        (
            "{% set text = message.content %}{% if 'A' in text %}{% set text = text.split('B')[0] %}{% endif %}",
            ("A", "B"),
        ),
        # a variable that is set further down, from one that is set there too
        ("{% if early == 'A' %}a{% endif %}{% set early = late %}{% set late = message.content %}", ("A",)),
    ],
)
def test_strings_that_are_looked_for_are_guards(body: str, expected: tuple[str, ...]) -> None:
    assert guards(each(body)) == expected


@pytest.mark.parametrize(
    "body",
    [
        "{{ message.content | upper }}",
        "{{ message.content | length }}",
        "{{ message.content[:10] }}",
        "{{ message.content.title() }}",
        "{{ message.content.strip('x') }}",  # may leave nothing of a text that is not blank
        "{{ message | tojson }}",
        "{{ message }}",
        "{{ messages }}",
        "{{ message.values() | join }}",
        "{% for key in message %}{{ message[key] }}{% endfor %}",
        "{% for letter in message.content %}-{% endfor %}",
        "{% if message.content > 'm' %}a{% endif %}",
        "{% if message.content == messages[0].content %}a{% endif %}",
        "{% if ('x' + message.content) == 'xA' %}a{% endif %}",  # a guard could stand over the border
        "{% if 'A' in (message.content + 'x') %}a{% endif %}",
        "{% if message.content is lower %}a{% endif %}",
        "{% if message == messages[-1] %}a{% endif %}",
        "{{ '%s' % message.content }}",
        "{{ '{}'.format(message.content) }}",
        "{{ message.content * 2 }}",
        "{{ [message.content] | join }}",
        "{{ message.content.split()[0] }}",
        "{{ message.content.split('A')[1] }}",
        "{{ message.content | replace('a', 'b') }}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ messages | selectattr('content') | list | length }}",
        "{% set ns = namespace(last='') %}{% set ns.last = message.content %}{% if ns.last > 'm' %}a{% endif %}",
        "{% macro say(text) %}{{ text | upper }}{% endmacro %}{{ say(message.content) }}",
        "{% macro say(text) %}{{ text }}{% endmacro %}{{ say(message.content) | length }}",
        "{% set hold = loop %}{{ hold.previtem.content | upper }}",
        "{% set part = message %}{% for again in [1, 2] %}{% if part.content < 'a' %}x{% endif %}{% endfor %}",
        "{% filter upper %}{{ message.content }}{% endfilter %}",
        "{% set block %}{{ message.content }}{% endset %}{% if block == 'x' %}a{% endif %}",
    ],
)
def test_other_uses_of_a_text_are_not_proven(body: str) -> None:
    assert guards(each(body)) is None


def test_a_template_that_rewrites_is_not_proven() -> None:
    assert guards(REPARSES) is None
