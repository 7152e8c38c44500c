"""Chat templates with what those of the families use give transformers' text in our sandbox."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from trilobit.errors import RequestError
from trilobit.text.chat_template import render

CHAT = [
    {"role": "system", "content": "Be kind.\n"},
    {"role": "user", "content": " Hello <|user|> "},
    {"role": "assistant", "content": "<think>\nWho?\n</think>\n\nHi 🦕"},
    {"role": "user", "content": "كيف حالك؟"},
]

# Falcon3: roles in pointed brackets, and a branch for tools that is not taken
FALCON3 = """{%- if tools %}
{{- '<|system|>\n' }}
{%- if messages[0]['role'] == 'system' %}
{{- messages[0]['content'] }}{%- set remaining = messages[1:] %}
{%- else %}{%- set remaining = messages %}{%- endif %}
{{- '<tools>' + tools | tojson(indent=2) + '</tools>' }}
{%- else %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
    {%- if not loop.last %}
{{- '<|assistant|>\n' + message['content'] + eos_token + '\n' }}
    {%- else %}
{{- '<|assistant|>\n' + message['content'] + eos_token }}
    {%- endif %}
{%- else %}
{{- '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
{%- endfor %}
{%- endif %}"""

# Llama 3.1: dates, tests of what is defined, and messages that are cut from the list
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls | length != 1 %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# Qwen3, and so Bonsai: the last question is sought from the end, thoughts before it are left out
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool_response>')
                 and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set parts = content.split('</think>') %}
            {%- set reasoning = parts[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = parts[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' }}
        {%- endif %}
        {{- content.lstrip('\n') + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

# Gemma3: the system message goes into the first turn, roles must alternate, contents may be parts
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

TEMPLATES = {"falcon3": FALCON3, "llama 3.1": LLAMA31, "qwen3": QWEN3, "gemma3": GEMMA3}


@pytest.mark.parametrize("chat", [CHAT, CHAT[1:], CHAT[1:2]], ids=["system", "turns", "one"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_text_equals_transformers(family: str, chat: list[dict[str, str]]) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        conversations=[chat],
        chat_template=TEMPLATES[family],
        add_generation_prompt=True,
        **names,
    )
    assert chat[-1]["content"].strip() in expected[0]
    assert render(TEMPLATES[family], chat, **names) == expected[0]


def test_earlier_thoughts_are_left_out() -> None:
    text = render(QWEN3, CHAT)
    assert "Who?" not in text
    assert "<|im_start|>assistant\nHi 🦕<|im_end|>" in text


def test_a_family_may_refuse_an_order_of_roles() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render(GEMMA3, [CHAT[1], CHAT[1]])
