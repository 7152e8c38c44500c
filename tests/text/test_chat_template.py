"""Chat templates give transformers' text, and a hostile one gives an error, not a dead machine."""

from __future__ import annotations

import tracemalloc

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from trilobit.errors import RequestError
from trilobit.text import sandbox
from trilobit.text.chat_template import render

CHAT = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": 'Hello "you" & <b>\n'},
    {"role": "assistant", "content": "Hi 🦕"},
    {"role": "user", "content": "كيف حالك؟"},
]

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
   + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""
CHATML = """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant\n' }}
{% endif %}"""
BITNET = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
EVERYTHING = """{%- macro show(m) %}{{ m.role | upper ~ '|' ~ m | tojson }}{% endmacro %}
{%- set ns = namespace(users=0, last='') %}
{{ strftime_now('%Y') }} {{ tools is none }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- if ns.users == 2 %}{% break %}{% endif %}
    {%- if m.role == 'user' %}{% set ns.users = ns.users + 1 %}{% endif %}
    {%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}
    {{ show(m) }} {{ m.content.split('"')[0].strip() }} {{ loop.length }}
{%- endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('; ') }}
{{ {'b': 1, 'a': [1, 2]} | tojson(indent=2) }}{{ '%s-%d' % ('x', 3) }}{{ range(3) | list }}"""

TEXTS = """{%- for m in messages[::-1] if m.role != 'system' and 'kind' not in m.content -%}
{{ m.content[1:-1] }}{{ m.content[:2] ~ m['content'][::2] }}|{{ ', '.join(m.keys()) }}
{{ m.content | replace('l', 'LL') }}{{ m.content.replace('l', '', 1) | replace(new='#', old='o') }}
{{ m.content.split('l')[-1].split() | join('-') }}{{ m.content.splitlines() | length }}
{{ m.items() | list }}{{ m | dictsort | first }}{{ m.content | list | unique | sort | join }}
{%- endfor %}
{{ [3, 1, 2] | sort | reverse | list }}{{ [1, 2.5] | sum }}{{ 2.567 | round(1) }}{{ '7' | int + 1 }}
{{ messages | map(attribute='role') | join(d='; ') }}{{ messages | join(',', attribute='role') }}
{{ ['b', 'a'] | tojson(separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=true) }}
{{ {'a': [1, {}], 'é': none, 'b': true} | tojson(indent=4, sort_keys=true) }}{{ [] | tojson }}
{{ dict(a=1, b=[2]) }}{{ namespace(a=1).a }}{{ [1, 2] + [3] }}{{ 'a' + 'b' }}{{ 7 % 4 }}{{ 3 * 4 }}
{{ messages | selectattr('role', 'in', ['user', 'tool']) | list | length }}{{ 'x' is string }}"""


@pytest.mark.parametrize(
    "template",
    [LLAMA3, CHATML, BITNET, MISTRAL, EVERYTHING, TEXTS],
    ids=["llama3", "chatml", "bitnet", "mistral", "everything", "texts"],
)
def test_text_equals_transformers(template: str) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        conversations=[CHAT], chat_template=template, add_generation_prompt=True, **names
    )
    assert render(template, CHAT, **names) == expected[0]


def test_bitnet_template_is_as_published() -> None:
    text = render(BITNET, [{"role": "user", "content": " Hello "}])
    assert text == "User: Hello<|eot_id|>Assistant: "


def test_refused_messages_say_why() -> None:
    with pytest.raises(RequestError, match="refused the messages: roles must alternate"):
        render(MISTRAL, [CHAT[1], CHAT[1]])


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ 'a' ",
        "{% unknown %}",
        "{{ nothing.here }}",
        "{{ nothing() }}",
        "{{ 1 // 0 }}",
        "{{ messages[9].content }}",
        "{{ 'a' | no_such_filter }}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as y %}",
    ],
)
def test_mistaken_templates_are_request_errors(template: str) -> None:
    with pytest.raises(RequestError, match="chat template failed"):
        render(template, CHAT)


GROW = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = "
# A text of a million characters.
LONG = "{% set ns = namespace(x='aaaaaaaa') %}" + (
    "{% for i in range(17) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)
GREEDY = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10 * 1000000000) %}{% endfor %}",
    "range as list": "{{ range(1000000000) | list }}",
    "range summed": "{{ range(1000000000) | sum }}",
    "repetition": "{{ 'a' * 1000000000 }}",
    "repetition from the left": "{{ 1000000000 * 'a' }}",
    "list repetition": "{{ ['a'] * 1000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "product": GROW.replace("'aaaaaaaa'", "9") + "ns.x * ns.x %}{% endfor %}",
    "plus doubling": GROW + "ns.x + ns.x %}{% endfor %}",
    "tilde doubling": GROW + "ns.x ~ ns.x %}{% endfor %}",
    "join doubling": GROW + "[ns.x, ns.x] | join %}{% endfor %}",
    "method join": GROW + "ns.x.join(ns.x) %}{% endfor %}",
    "replace": GROW + "ns.x | replace('a', ns.x) %}{% endfor %}",
    "method replace": GROW + "ns.x.replace('', ns.x) %}{% endfor %}",
    "format doubling": GROW + "'%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "json of lists": GROW + "[ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "text of lists": GROW + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "dicts": GROW + "{'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | string }}",
    "dict calls": GROW + "dict(a=ns.x, b=ns.x) %}{% endfor %}{{ '%s' % ns.x }}",
    "dict views": GROW + "dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x.values() }}",
    "refusal of dicts": GROW + "dict(a=ns.x, b=ns.x) %}{% endfor %}{{ raise_exception(ns.x) }}",
    "block doubling": "{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "center": "{{ 'a' | center(1000000000) }}",
    "method center": "{{ 'a'.center(1000000000) }}",
    "method ljust": "{{ 'a'.ljust(1000000000) }}",
    "method zfill": "{{ 'a'.zfill(1000000000) }}",
    "method expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a' | indent(1000000000, first=true) }}",
    "json indent": "{{ [1] | tojson(indent=1000000000) }}",
    "field width": "{{ '%1000000000d' % 1 }}",
    "starred width": "{{ '%*d' % (1000000000, 1) }}",
    "named width": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "batch": "{{ [1] | batch(1000000000, 'a') | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "lorem": "{{ lipsum(1000000) }}",
    "long source": "a" * 100_001,
    "deep source": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "constant folding": "{{ 'a' ~ 'b' * 1000000000 }}",
    "rounding up": "{{ 1.5 | round(100000000, 'ceil') }}",
    "rounding to millions": "{{ 5 | round(-100000000) }}",
    "sum of lists": LONG + "{{ ns.x | map('list') | sum(start=[]) }}",
    "join by keyword": LONG + "{{ messages | join(attribute='role', d=ns.x * 1) }}"
    "{{ range(2000) | join(attribute='real', d=ns.x) }}",
    "join of characters": LONG + "{{ ','.join(ns.x) | length }}{{ ns.x | join(ns.x) | length }}",
    "join of namespaces": LONG + "{% set m = namespace(l=[ns]) %}{% for i in range(12) %}"
    "{% set m.l = m.l + m.l %}{% endfor %}{{ m.l | join(attribute='x') }}",
    "sort of attributes": LONG + "{% set m = namespace(l=[ns]) %}{% for i in range(12) %}"
    "{% set m.l = m.l + m.l %}{% endfor %}{{ m.l | sort(attribute='x') | length }}",
    "sort of loops": LONG + "{% for y in [1, ns.x] %}{% set m = namespace(l=[loop, loop]) %}"
    "{{ m.l | sort(attribute='nextitem') }}{% endfor %}",
    "replace by keyword": LONG + "{{ ns.x | replace(new=ns.x, old='a') }}",
    "json separators": LONG + "{{ range(9000) | list | tojson(separators=(ns.x, ':')) }}",
    "json escapes": LONG.replace("a", "\U0001f995") + "{% for i in range(9) %}"
    "{% set ns.x = ns.x ~ (ns.x | tojson(ensure_ascii=true)) %}{% endfor %}",
    "bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "dict of a range": "{{ {}.fromkeys(range(20000000)) | length }}",
    "kept slices": LONG + "{% set m = namespace(l=[]) %}{% for i in range(3000) %}"
    "{% set m.l = m.l + [ns.x[1:]] %}{% endfor %}",
    "kept copies": LONG + "".join(f"{{% set x{i} = ns.x | reverse %}}" for i in range(999)),
    "split into items": LONG + "{{ ns.x.split('a') | length }}{{ ns.x.split('a') | length }}",
    "split at blanks": LONG.replace("aa", "a ") + "{{ ns.x.split() | length }}" * 3,
    "split at line ends": LONG.replace("aa", "a\x1c") + "{{ ns.x.splitlines() | length }}" * 3,
    "list of characters": LONG + "{{ ns.x | list | length }}",
    "sorted characters": LONG + "{{ ns.x | sort | length }}",
    "mapped characters": LONG + "{{ ns.x | map('upper') | list | length }}",
    "characters as arguments": LONG + "{{ dict(*ns.x) }}",
    "characters of a filter": LONG + "{{ 'a' | default(*ns.x) }}",
    "items among items": "{{ range(40000) | select('in', range(40000, 80000) | list) | list }}",
    "condition of a loop": LONG + "{% for i in range(90000) if 'b' in ns.x %}{% endfor %}"
    "{% for i in range(90000) if 'b' in ns.x %}{% endfor %}" * 9,
    "block recursion": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "equal structures": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "dates": "{% set ns = namespace(x='%c%c%c%c%c%c%c%c%c%c') %}{% for i in range(14) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}" + "{% set y = strftime_now(ns.x) %}" * 40,
    "a wide date": "{{ strftime_now('%999999999Y') }}",
    "a wide date with flags": "{{ strftime_now('%_-^#0999999999c') }}",
    "long integer": LONG.replace("a", "f") + "{{ (ns.x | int(base=16)) // 3 }}",
}


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY.keys())
def test_greedy_templates_end_in_little_memory(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_SECONDS", 0.5)  # only so that the test ends sooner
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            render(template, CHAT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The budget is 50 million characters of 1 to 4 bytes, with a text held once more to join it.
    assert peak < 250_000_000


def test_nested_namespaces_are_shown_in_one_word() -> None:
    assert render(GROW + "namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}", CHAT) == (
        "<Namespace>"
    )


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.mro()",
        "''['__class__']",
        "'' | attr('__class__')",
        "messages.__class__",
        "messages.append(1)",
        "messages[0].update({'a': 1})",
        "raise_exception.__globals__",
        "render.__globals__",
        "'{0.__class__}'.format(1)",
        "'{a.__class__}'.format_map({'a': 1})",
        "''.format.__self__.__class__.x",
        "[''] | map('format', 1) | list",
        "[''] | map(attribute='__class__.mro') | first | string | length // 0",
        "self.__init__.__globals__",
        "namespace.__init__.__globals__",
        "cycler.__init__.__globals__",
        "strftime_now.__code__",
        "dict.__base__.__subclasses__()",
        "messages.copy()",
        "messages[0].copy()",
        "messages[0].fromkeys('ab')",
        "(1).real",
        "(1.5).hex()",
        "range(3).start",
        "range.__self__",
        "loop.__class__",
        "messages | map(attribute='__class__') | first",
        "messages | map('attr', '__class__') | first",
    ],
)
def test_templates_cannot_reach_python(expression: str) -> None:
    # What is unsafe is undefined, and an error as soon as anything is done with it.
    try:
        text = render("{{ (" + expression + ") is defined }}", CHAT)
    except RequestError:
        return
    assert text == "False"


@pytest.mark.parametrize(
    "expression",
    ["messages[0].get('role')", "messages[0].items() | list", "[1].index(1)", "' a'.strip()"],
)
def test_templates_reach_plain_data(expression: str) -> None:
    assert render("{{ (" + expression + ") is defined }}", CHAT) == "True"


def test_the_largest_source_takes_seconds_at_most() -> None:
    piece = "{% if a %}{{ a.b['c'] }}{% endif %}"
    assert render(piece * (100_000 // len(piece)), CHAT) == ""
