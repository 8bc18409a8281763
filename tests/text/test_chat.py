"""Chat templates: the usual families, what is refused, and what a hostile template can cost."""

import datetime
import gc
import json
import time

import pytest

from rtp_jax.errors import CheckpointError, FailedPrecondition, InvalidArgument
from rtp_jax.text.chat import (
    ChatTemplate,
    check_template_kwargs,
    choose_template,
    load_chat_templates,
    render_chat,
)
from rtp_jax.text.sandbox import Limits

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message['content'] | trim }}{% endgeneration %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " ~ strftime_now("%d %b %Y") ~ "\\n\\n" ~ ns.system ~ "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- call.function.name }}:{{ call.function.arguments | tojson }}
        {%- endfor %}
        {%- continue %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user and assistant') }}
{% endif %}
{% if m['role'] == 'user' %}{{ '[INST] %s [/INST]' % m['content'] }}{% else %}
{{ m['content'] + eos_token }}{% endif %}
{% endfor %}
"""
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"
HELLO = [{"role": "user", "content": "Hello <&> \u00e9\u4e16"}]
TALK = [
    {"role": "system", "content": "Be brief. "},
    *HELLO,
    {"role": "assistant", "content": " Hi! "},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
]


def template(source: str, **limits) -> ChatTemplate:
    def now() -> datetime.datetime:
        return datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)

    return ChatTemplate("default", source, now=now, limits=Limits(**limits))


def render(source: str, messages=HELLO, **options) -> str:
    return render_chat(template(source), messages, **options)


@pytest.mark.capability("chat templates")
def test_chatml():
    assert render(CHATML, TALK) == (
        "<|im_start|>system\nBe brief. <|im_end|>\n"
        "<|im_start|>user\nHello <&> \u00e9\u4e16<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render(CHATML, enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert render(CHATML, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_llama_with_tools():
    call = {"function": {"name": "now", "arguments": '{"zone": "<\u00e9>"}'}}
    messages = [*TALK[:2], {"role": "assistant", "content": None, "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "now"}}]
    text = render(LLAMA, messages, bos_token="<|begin_of_text|>", tools=tools)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Today Date: 31 Jan 2026\n\nBe brief.<|eot_id|>"
        + json.dumps(tools[0], indent=4)
        + "\n\n<|start_header_id|>user<|end_header_id|>\n\nHello <&> \u00e9\u4e16<|eot_id|>"
        'now:{"zone": "<\u00e9>"}<|start_header_id|>assistant<|end_header_id|>\n\n'
    )


def test_mistral():
    text = render(MISTRAL, TALK[1:3], bos_token="<s>", eos_token="</s>")
    assert text == "<s>[INST] Hello <&> \u00e9\u4e16 [/INST] Hi! </s>"
    with pytest.raises(InvalidArgument, match=r"RTPJ-3404 .*: roles must alternate"):
        render(MISTRAL, TALK)


@pytest.mark.parametrize(("source", "end"), [(ECHO, "a "), (CHATML, "assistant\na")])
def test_the_final_message_is_continued(source, end):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a "}]
    text = render(source, messages, continue_final_message=True, add_generation_prompt=False)
    assert text.endswith(end)
    assert messages[-1]["content"] == "a "
    with pytest.raises(InvalidArgument, match="RTPJ-3406 CHAT_FLAGS_CONFLICT"):
        render(source, messages, continue_final_message=True)
    with pytest.raises(InvalidArgument, match=r"RTPJ-3405 .* final message"):
        render("x", messages, continue_final_message=True, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("messages", "field", "name"),
    [
        ([], "messages", "RTPJ-3403"),
        ("hello", "messages", "RTPJ-3403"),
        ([*HELLO, "x"], "messages[1]", "RTPJ-3403"),
        ([*HELLO, {"content": "x"}], "messages[1].role", "RTPJ-3403"),
        ([{"role": "r" * 65, "content": "x"}], "messages[0].role", "RTPJ-3403"),
        ([{"role": "user"}], "messages[0].content", "RTPJ-3403"),
        ([{"role": "user", "content": 3}], "messages[0].content", "RTPJ-3403"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "RTPJ-3403"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages[0].content[0].text",
            "RTPJ-3403",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "messages[0].content[0]",
            "RTPJ-3407",
        ),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content", "RTPJ-3312"),
        ([{"role": "user", "content": "x", "extra": object()}], "messages[0].extra", "RTPJ-3403"),
        ([{"role": "user", "content": "x"}] * 9000, "messages", "9000 messages"),
        (
            [{"role": "a", "content": "", "tool_calls": [{"function": {"arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "is not JSON",
        ),
    ],
)
def test_bad_messages_are_refused_by_field(messages, field, name):
    with pytest.raises(InvalidArgument, match=name) as raised:
        render(ECHO, messages)
    assert raised.value.field == field
    assert field in str(raised.value)


def test_deep_data_is_refused():
    deep = []
    for _ in range(50):
        deep = [deep]
    with pytest.raises(InvalidArgument, match=r"RTPJ-3403 .* nested more than"):
        render(ECHO, template_option=deep)


def test_reserved_variables_are_refused():
    for name in ("messages", "chat_template", "bos_token"):
        with pytest.raises(InvalidArgument, match=f"RTPJ-3409 CHAT_OPTION_RESERVED: .*{name}"):
            check_template_kwargs({name: "x"})
    with pytest.raises(InvalidArgument, match="RTPJ-3409"):
        render_chat(template(ECHO), HELLO, **{"messages": []})


ATTACKS = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ [x for x in 'a'] }}",
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ ['a']|map(attribute='__class__')|map(attribute='__mro__')|list }}",
    "{{ messages|sort(attribute='__class__')|map(attribute='__class__')|first }}{{ 1/0 }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace(__x=1) %}",
    "{{ namespace({'a': 1}) }}",
    "{{ (range(3)|map('string')) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{{ self._TemplateReference__context.x }}",
    "{{ dict.mro() }}",
    "{{ lipsum(100000) }}",
    "{{ environment.filters }}",
    "{{ 1 / 0 }}",
    "{{ none + 1 }}",
    "{{ undefined_name.x }}",
    "{{ messages[0]['content'][10**9] + 'x' }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ '%c' % 99999999 }}",
    "{{ strftime_now(3) }}",
]
GROW = (
    "{% set n = namespace(x=(1,), y=(1,)) %}"
    "{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}"
)
BOMBS = [
    GROW + "{{ n.x == n.y }}",
    GROW + "{{ n.x in [n.y] }}",
    GROW + "{{ n.x is eq(n.y) }}",
    GROW + "{{ [n.x]|select('eq', n.y)|list|length }}",
    GROW + "{{ [n.x, n.y]|unique|list|length }}",
    GROW + "{{ ([n.x, n.y]|max)[0] is defined }}",
    GROW + "{{ {n.x: 1}|length }}",
    GROW + "{{ [n.x].index(n.y) }}",
    GROW + "{{ messages[0].get(n.x) }}",
    GROW + "{{ messages[0][n.x].x }}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 10 ** 1000000000 }}",
    "{{ 9**9**9**9**9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a\nb'|indent(10**9) }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{{ [1]|tojson(separators=('a' * 10**6, ':')) }}",
    "{{ 1.5|round(1000000000, 'ceil') }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ range(10**9) }}",
    "{{ range(10**5)|list|join('a' * 10**5) }}",
    "{{ ('a' * 10**5).join(range(10**5)|map('string')) }}",
    "{{ ('a' * 10**5)|replace('', 'b' * 10**5) }}",
    "{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}",
    "{{ ([['a'] * 10**4] * 10**4)|sum(start=[])|length }}",
    "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
    "{% for a in range(10**5) %}{% for b in range(10**5) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(10**5) if (range(10**5)|list|length) < 0 %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x|tojson }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}"
    "{{ n.x ~ 'x' }}",
    "{% set x = 'a' * 10**6 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 30,
    "{% set x %}{% for i in range(10**5) %}" + "a" * 10000 + "{% endfor %}{% endset %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(10**5) %}{{ messages }}{% endfor %}",
    "{{ (['a' * 10**6] * 10**4)|map('replace', 'a', 'b')|list|length }}",
    "{{ ([range(10**5)] * 10**5)|map('list')|map('length')|sum }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_an_attack_is_a_typed_error(source):
    messages = [dict(HELLO[0])]
    with pytest.raises(InvalidArgument, match=r"RTPJ-340[25]|RTPJ-3408") as raised:
        render(source, messages)
    assert "Traceback" not in str(raised.value)
    assert messages == HELLO


@pytest.mark.parametrize("name", ["''.__class__", "raise_exception.__globals__", "self._x"])
def test_what_is_forbidden_writes_nothing(name):
    assert render(f"[{{{{ {name} }}}}]") == "[]"


@pytest.fixture
def no_collection():
    """Keep the clock of a short call free of garbage that thousands of tests have left."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("source", BOMBS)
def test_a_bomb_is_stopped_in_time(source):
    bomb = template(source, seconds=0.1, output_chars=1 << 20, made_chars=16 << 20)
    start = time.thread_time()
    with pytest.raises(InvalidArgument, match=r"RTPJ-340[258] "):
        render_chat(bomb, HELLO)
    assert time.thread_time() - start < 1.0  # the limit and the operation it was noticed after


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ x", "{{ 'a'|no_such_filter }}", "(" * 10 + "{{" + "(" * 10000, "{% frob %}"],
)
def test_a_broken_template_is_refused(source):
    with pytest.raises(CheckpointError, match="RTPJ-3402 CHAT_TEMPLATE_BROKEN"):
        render(source)


def test_a_huge_template_is_refused():
    with pytest.raises(CheckpointError, match=r"RTPJ-3402 .* 300000 characters"):
        render("a" * 300_000)


@pytest.mark.usefixtures("no_collection")
def test_a_long_honest_conversation_fits():
    turns = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "ok"}]
    start = time.thread_time()
    text = render(CHATML, turns * 400)  # 4 million characters
    assert text.count("<|im_end|>") == 800
    assert time.thread_time() - start < 1.0


def test_templates_are_found_by_name(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"RTPJ-3401 .* It has none"):
        choose_template(load_chat_templates(tmp_path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert choose_template(load_chat_templates(tmp_path)).source == "one"
    listed = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    config.write_text(json.dumps({"chat_template": listed}))
    templates = load_chat_templates(tmp_path)
    assert choose_template(templates).source == "two"
    assert choose_template(templates, tools=True).source == "three"
    with pytest.raises(FailedPrecondition, match=r"'rag'. It has default, tool_use"):
        choose_template(templates, name="rag")
    (tmp_path / "chat_template.jinja").write_text("four")
    assert choose_template(load_chat_templates(tmp_path)).source == "four"


@pytest.mark.parametrize("value", [3, [3], [{"name": "x"}], [{"template": "x"}], {"a": "b"}])
def test_a_malformed_list_of_templates_is_refused(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 .*tokenizer_config.json"):
        load_chat_templates(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"RTPJ-3304 .*chat_template.jinja"):
        load_chat_templates(tmp_path)
