# ruff: noqa: E501 (templates)
"""Chat templates in SQL against transformers' apply_chat_template, and Jinja."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from chat_templates import TEMPLATES
from dbt_nn.checkpoint.chat import chat_settings, compile_template
from dbt_nn.checkpoint.files import CheckpointError
from macros import load_macros
from random_texts import random_texts

SCHEMA = "chat_test"
MACROS = load_macros(SCHEMA, "chat/*.sql", "text/prompts.sql")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
Message = dict[str, Any]
Run = Callable[..., tuple[str | None, str | None]]


@pytest.fixture(scope="module")
def run(connection: Connection) -> Iterator[Run]:
    """Run a template in the database: its text, or what is wrong."""
    cursor = connection.cursor()
    cursor.execute(f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}")
    cursor.execute(MACROS.create_chat_functions())

    def run_template(
        template: str, messages: list[Message], **named: Any
    ) -> tuple[str | None, str | None]:
        program = compile_template(template)
        cursor.execute(
            f"select content, problem from {SCHEMA}.chat_text(%s, %s, %s, %s)",
            [Json(value) for value in (program, TOKENS, messages, named)],
        )
        return cursor.fetchone()

    yield run_template
    cursor.execute(f"drop schema {SCHEMA} cascade")


REFERENCE = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)


def expected(template: str, messages: list[Message], **named: Any) -> str | None:
    """What transformers makes of it; None where it raises."""
    try:
        return REFERENCE.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **named,
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError):
        return None


def conversations(count: int, seed: int) -> list[list[Message]]:
    """Of some turns, a few with roles that are out of order or unknown."""
    rng = random.Random(seed)
    texts = iter(
        random_texts(count * 12, seed, ["<think>", "</think>\n", "<s>", "[INST]"])
    )
    found = []
    for _ in range(count):
        messages = [{"role": "system", "content": next(texts)}] * rng.randint(0, 1)
        for turn in range(rng.randint(1, 7)):
            role = ("user", "assistant")[turn % 2]
            if rng.random() < 0.05:
                role = rng.choice(["user", "assistant", "system", "tool", "x"])
            messages.append({"role": role, "content": next(texts)})
            if rng.random() < 0.03:
                messages[-1]["content"] = rng.choice([None, 7, True, ["a"]])
            if rng.random() < 0.05:
                messages[-1]["reasoning_content"] = next(texts)
        found.append(messages)
    return found


def check(run: Run, family: str, count: int) -> None:
    template, failed = TEMPLATES[family], 0
    for messages in conversations(count, seed=len(family)):
        named = {"enable_thinking": False} if len(messages) % 2 else {}
        ours, problem = run(template, messages, **named)
        theirs = expected(template, messages, **named)
        if theirs is None:
            assert ours is None, messages
            assert problem
            failed += 1
        elif "writes a list" not in (problem or ""):
            assert problem is None, (problem, messages)
            assert ascii(ours) == ascii(theirs), messages
    assert failed < count / 2


@pytest.mark.parametrize("family", TEMPLATES)
def test_families(run: Run, family: str) -> None:
    check(run, family, 20)


@pytest.mark.long
@pytest.mark.parametrize("family", TEMPLATES)
def test_many_conversations(run: Run, family: str) -> None:
    check(run, family, 200)


TALK = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "Who wrote Emma?", "parts": [{"type": "text"}, {}]},
    {"role": "assistant", "content": "Jane Austen, in 1815."},
    {"role": "user", "content": "And then?\u00a0", "n": 3, "x": 1.5, "ok": True},
]
EXPRESSIONS = [
    *(
        "1 + 2 * 3 - 4",
        "7 // 2",
        "-7 // 2",
        "7 % 3",
        "-7 % 3",
        "'ab' * 3",
        "'' ~ 1 ~ none",
    ),
    *(
        "1 == 1.0",
        "true == 1",
        "'a' == 1",
        "none == none",
        "x == y",
        "'a' < 'b'",
        "3 > 2 > 1",
    ),
    *(
        "1 < 2 < 2",
        "'a' in 'cat'",
        "'x' not in ['a']",
        "'role' in messages[0]",
        "1 in [true]",
    ),
    *("messages[-1].role", "messages[9] is defined", "messages[0].nothing is defined"),
    *(
        "messages|length",
        "'abc'[1]",
        "'abc'[-1]",
        "'abc'[9]",
        "'abcdef'[1:4]",
        "'abcdef'[::-1]",
    ),
    *("'abcdef'[-2:]", "'abcdef'[:-2]", "'abcdef'[4:1:-2]", "messages[1:][0].content"),
    *(
        "'a' if true else 'b'",
        "'a' if false",
        "none or 'x'",
        "'' and 'x'",
        "0 or ''",
        "not []",
    ),
    *(
        "messages[0].content|trim",
        "messages[0].content.strip() + '|'",
        "'xxaxx'.strip('x')",
    ),
    *(
        "'xxaxx'.lstrip('x')",
        "'xxaxx'.rstrip('x')",
        "'\\u00a0\\u2003 a\\x1c'.strip()",
        "'  a'.lstrip()",
    ),
    *("'a,b,c'.split(',')[1]", "'a b  c'.split()|length", "'a,b,c'.split(',', 1)[1]"),
    *("'a,b,c'.rsplit(',', 1)[0]", "''.split(',')|length", "'abc'.startswith('ab')"),
    *(
        "'abc'.endswith(('x', 'c'))",
        "'aXb'.upper()",
        "'aXb'.lower()",
        "'aXb' | capitalize",
    ),
    *(
        "'aXb'|title",
        "'abcabc'.replace('b', 'x')",
        "'abc'.find('c')",
        "'abc'.count('b')",
    ),
    *(
        "', '.join(['a', 'b'])",
        "['a', 1, none]|join('-')",
        "'abc'|join('.')",
        "['a','b']|first",
    ),
    *(
        "['a','b']|last",
        "[]|first is defined",
        "'abc'|list|length",
        "['a','b']|reverse|list|join",
    ),
    *(
        "x|default('d')",
        "''|default('d')",
        "''|default('d', true)",
        "none|default('d')",
        "x|d",
    ),
    *(
        "'7'|int + 1",
        "'x'|int",
        "3.7|int",
        "3|string + 'a'",
        "messages[3].x",
        "messages[3].ok",
    ),
    *("messages|map(attribute='role')|join(',')", "[' a ']|map('trim')|join('|')"),
    *(
        "messages|selectattr('role', 'equalto', 'user')|list|length",
        "messages|rejectattr('n')|list|length",
    ),
    *(
        "messages|selectattr('n', 'defined')|map(attribute='n')|first",
        "[1,0,2]|select|list|length",
    ),
    *(
        "[1,2,3]|select('odd')|list|join(',')",
        "[1,2,3]|reject('gt', 1)|join",
        "'a\"b\\n<é>'|tojson",
    ),
    *("[1, 'a', true, none]|tojson", "{'a': [1, 2]}|tojson", "messages[0].get('role')"),
    *(
        "messages[0].get('x')",
        "messages[0].get('x', 'd')",
        "{'a': 1}.items()|list|length",
    ),
    *(
        "range(3)|join(',')",
        "range(2, 8, 3)|join(',')",
        "range(5, 0, -2)|join(',')",
        "dict(a=1).a",
    ),
    *(
        "strftime_now is defined",
        "nothing is defined",
        "tools is none",
        "documents is none",
    ),
    *(
        "add_generation_prompt",
        "bos_token + eos_token",
        "unk_token is defined",
        "messages is string",
    ),
    *(
        "messages is mapping",
        "messages[0] is mapping",
        "messages is iterable",
        "'a' is iterable",
    ),
    *(
        "3 is number",
        "true is number",
        "3 is integer",
        "3.5 is float",
        "true is boolean",
        "4 is even",
    ),
    *(
        "none is none",
        "3 is divisibleby 3",
        "'a' is in 'ab'",
        "x is undefined",
        "1 is true",
        "true is true",
    ),
    *(
        "messages[1].parts[0].type",
        "messages[1].parts[1].type is defined",
        "namespace is defined",
    ),
    *(
        "messages[1]['parts']|length",
        "3 is ge 2",
        "(1, 2)|join",
        "-messages[3].n",
        '"it\'s"',
        "x ~ 'a'",
    ),
]
STATEMENTS = [
    "{% set a = 1 %}{% for i in range(3) %}{% set a = a + 1 %}{{ a }}{% endfor %}{{ a }}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s + m.role %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% elif loop.index == 4 %}{% break %}"
    "{% endif %}{{ m.role }},{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in nothing %}x{% else %}none{% endfor %}",
    "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}-{{ b }};{% endfor %}{% set c, d = 'xy' %}{{ d }}{{ c }}",
    "{% for i in 'ab' %}{% for j in [1, 2] %}{{ loop.index }}{{ i }}{% if j == 1 %}{% break %}{% endif %}"
    "{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x|length }}{{ x }}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "a\n   {% if true %}\n   b\n   {% endif %}\n{# c #}\n  {{- 'd' -}}  \n e\n",
    "{%- if true -%}  x {%- else -%} y {%- endif +%}\n z",
    "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "{% raw %}{{ not this }}{% endraw %}{% if x %}{% elif messages %}y{% endif %}",
    "{% macro f(x) %}{{ x }}{% endmacro %}a",
    "{% set ns = namespace(a=none) %}{% set ns.b = ns.a %}{{ ns.b }}{{ ns.c is defined }}",
    "{% set messages = messages[1:] %}{% for m in messages %}{{ m.role }}{% endfor %}",
    "{% set a = nothing %}{{ a is defined }}{% set b = a|default('z') %}{{ b }}",
]


@pytest.mark.parametrize(
    "template", [f"{{{{ {e} }}}}" for e in EXPRESSIONS] + STATEMENTS
)
def test_instructions(run: Run, template: str) -> None:
    """Each as Jinja does it."""
    theirs = expected(template, TALK)
    assert theirs is not None
    assert run(template, TALK) == (theirs, None)


FAILURES = [
    *(
        "{{ raise_exception('no ' ~ 'way') }}",
        "{{ 'a' + none }}",
        "{{ 'a' + nothing }}",
    ),
    *(
        "{{ nothing.x }}",
        "{{ none.x.y }}",
        "{{ messages[9].role }}",
        "{% for i in none %}{% endfor %}",
    ),
    *(
        "{{ none|length }}",
        "{{ 1 + 'a' }}",
        "{{ none.strip() }}",
        "{{ 'a' < 1 }}",
        "{{ 1 // 0 }}",
    ),
    *(
        "{{ 'a'.split('') }}",
        "{{ nothing() }}",
        "{{ 'a' in none }}",
        "{{ 'abc'[::0] }}",
    ),
    *(
        "{% set x = 1 %}{% set x.y = 2 %}",
        "{{ nothing|tojson }}",
        "{% set a, b = [1] %}",
    ),
]


@pytest.mark.parametrize("template", FAILURES)
def test_failures(run: Run, template: str) -> None:
    """What fails in Jinja fails here."""
    assert expected(template, TALK) is None
    content, problem = run(template, TALK)
    assert content is None
    assert problem.startswith("the chat template: ")


REFUSALS = {
    "{{ messages }}": "writes a list where a text",
    "{{ messages[0] }}": "writes a mapping where a text",
    "{{ messages|tojson }}": "a mapping as JSON, whose keys have no order",
    "{{ messages|tojson(indent=4) }}": "the filter tojson with",
    "{{ messages[0].items() }}": "the keys of a mapping",
    "{% for k in messages[0] %}{% endfor %}": "the keys of a mapping",
    "{{ 'é'|upper }}": "the case of a text beyond ASCII",
    "{{ 1 / 2 }}": "numbers that are not whole",
    "{{ 'a'|escape }}": "the filter escape, which is not supported",
    "{{ 'a'.zfill(3) }}": "zfill(), which is not supported",
    "{{ 1 is callable }}{{ 1 is foo }}": "the test foo, which is not supported",
    "{{ lipsum() }}": "lipsum(), which is not supported",
    "{{ ''.__class__.__mro__ }}": "it asks for __mro__ of what is undefined",
    "{% macro f() %}{% endmacro %}{{ f() }}": "f(), which is not supported",
    "{% include 'x' %}": "Include in line 1, which is not supported",
    "{{ 2 ** 3 }}": "Pow in line 1, which is not supported",
    "{% for i in range(100001) %}{% endfor %}": "range is too large",
    "{{ 'a' * 100000000 }}": "repeats a text too often",
    "{{ strftime_now('%U') }}": "the time in the format %U",
}


@pytest.mark.parametrize("template", REFUSALS)
def test_refusals(run: Run, template: str) -> None:
    """What is not done as Python does it says so."""
    content, problem = run(template, TALK)
    assert content is None
    assert REFUSALS[template] in problem


@pytest.mark.long
def test_endless(run: Run) -> None:
    """A template that does not end is stopped."""
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    content, problem = run(endless, TALK)
    assert content is None
    assert "longer than 10 s" in problem


def test_growing(run: Run) -> None:
    """One that writes without end, too; and one whose values grow."""
    for twice in ("a + a", "a ~ a", "a ~ '' ~ a"):
        doubled = "{% set a = 'aaaaaaaa' %}" + f"{{% set a = {twice} %}}" * 60
        assert "more than 10000000 characters" in run(doubled, TALK)[1]
    growing = "{% for a in range(99999) %}{{ 'a' * 999999 }}{% endfor %}"
    assert "more than 10000000 characters" in run(growing, TALK)[1]


def test_time(run: Run, connection: Connection) -> None:
    """In English, by the server's clock."""
    content, problem = run("{{ strftime_now('%d %b %Y %B %A %a %m/%y %%') }}", TALK)
    assert problem is None
    assert re.fullmatch(r"\d\d \w{3} \d{4} \w+ \w+day \w{3} \d\d/\d\d %", content)


def test_files(tmp_path: Path) -> None:
    """A file of its own, tokenizer_config.json, or several by name."""
    assert chat_settings(tmp_path) == {}
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "a", "bos_token": "<s>"}))
    assert chat_settings(tmp_path) == {
        "chat_template": "a",
        "chat_program": [["text", "a"]],
        "chat_tokens": {"bos_token": "<s>"},
    }
    named = [
        {"name": "tool_use", "template": "t"},
        {"name": "default", "template": "d"},
    ]
    config.write_text(json.dumps({"chat_template": named}))
    assert chat_settings(tmp_path)["chat_template"] == "d"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    found = chat_settings(tmp_path)
    assert "no valid Jinja" in found["chat_problem"]
    assert "chat_program" not in found
    (tmp_path / "chat_template.jinja").write_text("(" * 500 + "{{" + "(" * 5000 + "1")
    assert "chat_problem" in chat_settings(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text('{"chat_template": 7}')
    with pytest.raises(CheckpointError, match="the chat template is 7"):
        chat_settings(tmp_path)
