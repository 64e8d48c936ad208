"""Answers of a form against Python's re, jsonschema, and transformers.

Which tokens a form allows is found anew by the `regex` package, which tells whether a
text is the beginning of a match, and transformers' generate() is restricted to them.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import jsonschema
import pytest
import regex
from psycopg2.errors import ProgramLimitExceeded
from psycopg2.extensions import connection as Connection
from transformers.convert_slow_tokenizer import bytes_to_unicode

from conftest import Dbt
from runs import Gpt2, Row, load_checkpoint
from small_networks import TEXT, make_project, save_text
from text_reference import Reference

SCHEMA = "test_answers"

EXPRESSIONS = [
    *(
        "",
        "x?",
        "yes|no",
        "(|a)b",
        "a{2}",
        "a{,2}b{2,}",
        "a{,}b",
        "{a}",
        "^ab$",
        "(a*)*b",
    ),
    *(r"(a|b)*abb", r"((a?){3}){2}", r"(ab|c){2,3}?d*", r"[0-9]{1,3}(\.[0-9]+)?"),
    *(r"[\]a-]+", r"[^a]é?[一-龥]{2,3}", r"[äöüß]+x?", r".{0,5}", r"\w+@\w+\.(com|de)"),
    *(r"\d{4}-\d\d", r"[^\w\s]🦋|\u00e9|\x41|\U0001F98B", r"[\uD7FF-\uE000]"),
    *(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"', r"(?P<name>a)(?:b)\.\|\[", r"\Aab\Z"),
    *(
        r"[\d\s-]+",
        r"[^\n]",
        r"\D\S\W",
        r"[a\-z]+",
        r"a+?b*?c??",
        "[\b]",
        r"\t\n\r\f\v",
    ),
]
LETTERS = (
    'ab"\\ \n\t\b\x0b0123éäßöü一龥🦋AZ_@.,cdxyesnom-]{}|[\x1f\x7f\u07ff\u0800'
    "\ud7ff\ue000\uffff\U00010000\U0010ffff"
)
REFUSED = {
    "a**": "has nothing to repeat",
    "*a": "has nothing to repeat",
    "(": "a ( is never closed",
    "a)": "a ) has no (",
    "[a": "a [ is never closed",
    r"(a)\1": r"the reference \1 back",
    "a{3,2}": "ends before it begins",
    "[z-a]": "ends before it begins",
    "(?=a)": "(?= are not supported",
    "(?i)a": "(?i are not supported",
    r"\ba": r"\b is not supported",
    r"\p{L}": r"\p is not supported",
    "a$b": "$ may only be at the end",
    "a^": "^ may only be at the beginning",
    "\\": "a backslash ends it",
    r"\x4": "2 hexadecimal digits",
    "[[:alpha:]]": "classes with names",
    r"\ud800": "matches no character",
    r"[^\x00-\U0010ffff]": "matches no character",
    "a{100000}": "too large",
    "(a{300}){300}": "too large",
    "(a|b)*a(a|b){20}": "too many states",
}

PERSON: Row = {
    "type": "object",
    "title": "Person",
    "properties": {
        "zname": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 7, "maximum": 120},
        "mood": {"enum": ["happy", 'so "so"', "ärgerlich\n", None, 3]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "born": {"type": "string", "format": "date"},
        "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "inner": {"$ref": "#/$defs/Inner"},
        "code": {"type": "string", "pattern": '^[A-Z"]{2}[0-9]$'},
        "const": {"const": "a{1}"},
        "id": {"type": "string", "format": "uuid"},
    },
    "required": ["zname", "mood", "inner", "code"],
    "additionalProperties": False,
    "$defs": {
        "Inner": {
            "type": "object",
            "properties": {"a": {"type": ["boolean", "null"]}, "b": {"const": 1}},
        }
    },
}
REFUSED_SCHEMAS: dict[str, str] = {
    "3": "a JSON schema, an object",
    '{"a":': "a JSON schema, an object",
    "{}": "it has no type",
    '{"type": "strin"}': 'type is "strin"',
    '{"type": "object"}': "an object needs properties",
    '{"properties": {"a": {"type": "number", "minimum": 0}}}': "of a: minimum is not",
    '{"properties": {"a": {"properties": {"b": {}}}}}': "of a.b: it has no type",
    '{"type": "string", "minimum": 3}': "minimum is not supported of type string",
    '{"$ref": "#/$defs/x"}': "not in $defs",
    '{"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}': "refers to itself",
    '{"type": "integer", "minimum": 3, "maximum": 2}': "no integer",
    '{"type": "integer", "minimum": "3"}': "must be a number",
    '{"type": "array"}': "needs items",
    '{"type": "string", "format": "uri"}': "date-time, email and uuid are supported",
    '{"properties": {"a": {"type": "null"}}, "required": ["b"]}': 'required has "b"',
    '{"enum": []}': "an array of values",
    '{"type": "string", "minLength": -1}': "a whole number from 0",
    '{"type": "string", "minLength": 3, "maxLength": 2}': "is above maxLength",
    '{"type": "string", "pattern": "(?i)a"}': "(?i are not supported",
    '{"type": "string", "pattern": "a\\tb"}': "that JSON writes as it is",
    '{"type": "string", "not": {}}': "not is not supported",
}


# --- The automata ----------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(save_text(tmp_path_factory.mktemp("text"), seed=5))


@pytest.fixture(scope="module")
def project(
    reference: Reference,
    tmp_path_factory: pytest.TempPathFactory,
    connection: Connection,
) -> Iterator[Path]:
    load_checkpoint(reference.folder, TEXT)
    yield make_project(tmp_path_factory.mktemp("project"), reference.folder)
    with connection.cursor() as cursor:
        cursor.execute(f"drop schema {TEXT} cascade")


@pytest.fixture(scope="module")
def runs(project: Path, dbt: Dbt, connection: Connection) -> Iterator[Gpt2]:
    """With the functions, which the first run makes."""
    runs = Gpt2(dbt, connection, SCHEMA, project / "target", TEXT, project)
    runs.complete([{"prompt_id": 1, "prompt": "", "regex": "a", "max_new_tokens": 2}])
    yield runs
    runs.drop()


def matches(runs: Gpt2, expression: str, texts: list[str]) -> list[bool]:
    """Which of the texts the automaton of an expression accepts."""
    found = runs.query(
        f"""
        select automaton.is_accepting[{SCHEMA}.automaton_state(
            alphabet, symbols, transitions, convert_to(answer.text, 'UTF8')
        )] as accepted
        from {SCHEMA}.regex_automaton(%s) as automaton
        cross join unnest(%s::text[]) with ordinality as answer (text, i)
        order by answer.i
        """,
        [expression, texts],
    )
    return [row["accepted"] is True for row in found]


def random_texts(choose: random.Random, letters: str, n: int) -> list[str]:
    return ["".join(choose.choices(letters, k=choose.randrange(7))) for _ in range(n)]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(runs: Gpt2, expression: str) -> None:
    choose = random.Random(24)
    own = [letter for letter in LETTERS if letter in expression] or [*LETTERS]
    texts = random_texts(choose, LETTERS, 300) + random_texts(choose, "".join(own), 300)
    # 🦋@x.de and what else random letters hardly make
    texts += [
        "A🦋",
        ".🦋",
        "\U0001f98b",
        "é",
        "a@b.de",
        "1234-56",
        "ab.|[",
        "ab",
        "é一一",
    ]
    expected = [re.fullmatch(expression, text, re.ASCII) is not None for text in texts]
    found = matches(runs, expression, texts)
    wrong = [text for text, a, b in zip(texts, expected, found, strict=True) if a != b]
    assert wrong == []


def random_expression(choose: random.Random, depth: int = 0) -> str:
    """Any of the syntax, a part of which is repeated or has alternatives."""
    kind = choose.randrange(9 if depth < 4 else 4)
    if kind < 3:
        return choose.choice(
            ["a", "b", "é", "🦋", ".", "[ab]", "[^aé]", r"\d", "[à-ÿ]"]
        )
    if kind == 3:
        return choose.choice([r"\w", r"[^\W_]", r"[一-龥🦋]", r"\.", "[b-é]"])
    parts = [
        random_expression(choose, depth + 1) for _ in range(choose.randrange(1, 4))
    ]
    if kind < 6:
        return "".join(parts)
    if kind == 6:
        return f"({'|'.join([*parts, ''][: len(parts) + choose.randrange(2)])})"
    quantifier = choose.choice(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?"])
    return f"(?:{''.join(parts)}){quantifier}"


@pytest.mark.parametrize("n", [40, pytest.param(1500, marks=pytest.mark.long)])
def test_random_expressions(runs: Gpt2, n: int) -> None:
    choose = random.Random(n)
    too_large = 0  # nested repetitions, of more states than one may have
    for _ in range(n):
        expression = random_expression(choose)
        texts = random_texts(choose, "abé🦋1一_.à", 60)
        expected = [
            re.fullmatch(expression, text, re.ASCII) is not None for text in texts
        ]
        try:
            assert matches(runs, expression, texts) == expected, expression
        except ProgramLimitExceeded:
            too_large += 1
    assert too_large <= n / 50


@pytest.mark.parametrize("low", [0, 5, -120, -7, 13, 99, -1000, 7])
def test_integers(runs: Gpt2, low: int) -> None:
    texts = [str(n) for n in range(-2100, 2101)] + ["-0", "007", "1.0", "1e2", "", "-"]
    for high in (low, 9, 101, 1999, -5):
        if low > high:
            continue
        schema = {"type": "integer", "minimum": low, "exclusiveMaximum": high + 1}
        [row] = runs.query(
            f"select {SCHEMA}.json_schema_regex(%s) as regex", [json.dumps(schema)]
        )
        found = matches(runs, row["regex"], texts)
        expected = [*(low <= n <= high for n in range(-2100, 2101)), *[False] * 6]
        assert found == expected, (low, high)


def test_dates(runs: Gpt2) -> None:
    """Those that Python's datetime reads, and no others."""
    texts = [
        f"{year:04}-{month:02}-{day:02}"
        for year in (0, 1000, 1900, 1999, 2000, 2004, 2023, 2024, 2100, 9999)
        for month in range(14)
        for day in (0, 1, 28, 29, 30, 31, 32)
    ]

    def is_date(text: str) -> bool:
        try:
            return bool(date.fromisoformat(text))
        except ValueError:
            return False

    schema = json.dumps({"type": "string", "format": "date"})
    [row] = runs.query(f"select {SCHEMA}.json_schema_regex(%s) as regex", [schema])
    found = matches(runs, row["regex"], [f'"{text}"' for text in texts])
    assert found == [is_date(text) for text in texts]


# --- The answers -------------------------------------------------------------------


def numbered(rows: list[Row]) -> list[Row]:
    return [{"prompt_id": n, **row} for n, row in enumerate(rows, 1)]


def check_schemas(runs: Gpt2, rows: list[Row]) -> None:
    """Each answer is JSON that fulfils its schema; PostgreSQL reads it, too."""
    completions = runs.completions()
    for row in rows:
        found = completions[row["prompt_id"]]
        assert found["error"] is None
        answer = json.loads(found["completion"])
        schema = row["json_schema"]
        jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker()
        ).validate(answer)
        if isinstance(answer, dict):
            order = [name for name in schema["properties"] if name in answer]
            assert list(answer) == order
    texts = [completions[row["prompt_id"]]["completion"] for row in rows]
    runs.query("select answer::jsonb from unnest(%s) as answer", [texts])


def check_data(runs: Gpt2) -> None:
    runs.dbt(
        *("test", "--select", runs.network), *runs.arguments(), env=runs.environment
    )


GREEDY = [
    *(r"(yes|no)\.", r"[a-z ]{3,9}", r"[^a]{4}!", "é+🦋", r"\d+ (men|women)", ""),
    r" ?[A-Z][a-z]*( [a-z]+){1,3}\.",
]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy(runs: Gpt2, reference: Reference, penalty: float) -> None:
    """The likeliest tokens of those that lead to a match."""
    rows = numbered(
        [
            {"prompt": "It is a truth", "regex": expression, "max_new_tokens": 24}
            | ({"repetition_penalty": penalty} if penalty != 1 else {})
            for expression in GREEDY
        ]
    )
    completions = runs.complete(rows)
    tokenizer = reference.tokenizer
    decoder = {letter: byte for byte, letter in bytes_to_unicode().items()}
    pieces = {
        token: bytes(decoder[letter] for letter in word)
        for word, token in tokenizer.get_vocab().items()
        if token not in tokenizer.all_special_ids
    }
    given = tokenizer("It is a truth")["input_ids"]
    for row in rows:
        pattern = regex.compile(row["regex"], regex.ASCII)

        def allowed(_: int, ids: object, pattern: regex.Pattern = pattern) -> list[int]:
            """Without the end of max_new_tokens, which these answers do not reach."""
            answer = b"".join(pieces[token] for token in ids.tolist()[len(given) :])
            possible = [
                token
                for token, piece in pieces.items()
                if is_beginning(pattern, answer + piece)
            ]
            if whole(pattern, answer):
                possible.append(tokenizer.eos_token_id)
            return possible

        expected = reference.generate(
            row,
            max_new_tokens=24,
            prefix_allowed_tokens_fn=allowed,
            repetition_penalty=penalty,
        )
        found = completions[row["prompt_id"]]
        assert re.fullmatch(row["regex"], found["completion"], re.ASCII)
        # where max_new_tokens is near, ours leaves out what could not be completed
        assert found["token_ids"][:12] == expected[:12], row
        if len(expected) < 16:
            assert found["token_ids"] == expected, row


def whole(pattern: regex.Pattern, answer: bytes) -> bool:
    try:
        return pattern.fullmatch(answer.decode()) is not None
    except UnicodeDecodeError:
        return False


def is_beginning(pattern: regex.Pattern, answer: bytes) -> bool:
    """Whether more bytes can complete it: of a character that is open, any rest."""
    for n in range(4):
        begun, rest = answer[: len(answer) - n], answer[len(answer) - n :]
        try:
            text = begun.decode()
        except UnicodeDecodeError:
            continue
        if not n:
            return pattern.fullmatch(text, partial=True) is not None
        # of the characters that begin so, those that the test's expressions have
        return any(
            pattern.fullmatch(text + letter, partial=True)
            for letter in candidates(rest)
        )
    return False


def candidates(rest: bytes) -> list[str]:
    """Characters whose UTF-8 begins so."""
    found = [letter for letter in ("é", "🦋") if letter.encode().startswith(rest)]
    tails = [b"\x80" * n for n in range(4)] + [b"\xbf" * n for n in range(4)]
    tails += [b"\xa0" + b"\x80" * n for n in range(3)] + [
        b"\x90" + b"\x80" * n for n in range(3)
    ]
    for tail in tails:
        try:
            [letter] = (rest + tail).decode()
        except (UnicodeDecodeError, ValueError):
            continue
        found.append(letter)
    return found


@pytest.mark.parametrize("n", [6, pytest.param(1000, marks=pytest.mark.long)])
def test_sampled(runs: Gpt2, n: int) -> None:
    """The answers to a schema and to expressions, drawn at random; of any length."""
    schemas: list[Row] = [
        PERSON,
        {"type": "integer"},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    ]
    expressions = [r"(\w+ ){2,5}\w+[.!?]", "[äöü一🦋]{1,12}", r".{3,20}"]
    rows = numbered(
        [
            {
                "prompt": "Emma",
                **(
                    {"json_schema": schemas[i // 2 % 3]}
                    if i % 2
                    else {"regex": expressions[i // 2 % 3]}
                ),
                "max_new_tokens": 250 if schemas[i // 2 % 3] is PERSON else 40,
                "temperature": 1.5,
                "top_k": 0,
                "seed": i,
            }
            for i in range(n)
        ]
    )
    completions = runs.complete(rows, batch_prompts=200)
    for row in rows:
        if "regex" in row:
            answer = completions[row["prompt_id"]]["completion"]
            assert re.fullmatch(row["regex"], answer, re.ASCII), row
    check_schemas(runs, [row for row in rows if "json_schema" in row])
    if n < 100:
        check_data(runs)


@pytest.mark.parametrize("expression", ["a{12}", "[ab]{3,12}c", "(abc)*", "é{6}"])
def test_to_the_last_token(runs: Gpt2, expression: str) -> None:
    """As many tokens as the shortest answer has bytes suffice; one less is refused."""
    shortest = {"a{12}": 12, "[ab]{3,12}c": 4, "(abc)*": 0, "é{6}": 12}[expression]
    rows = numbered(
        [
            {
                "prompt": "So",
                "regex": expression,
                "max_new_tokens": n,
                "temperature": 5.0,
                "seed": seed,
            }
            for n in (shortest, shortest + 1, shortest + 5)
            for seed in range(4)
        ]
    )
    few = {"prompt_id": 99, "prompt": "So", "regex": expression} | {
        "max_new_tokens": shortest - 1
    }
    completions = runs.complete(rows + ([few] if shortest else []))
    for row in rows:
        found = completions[row["prompt_id"]]
        assert re.fullmatch(expression, found["completion"]), row
    if shortest:
        error = completions[99]["error"]
        assert f"may need {shortest} tokens, more than {shortest - 1}" in error


def test_refused(runs: Gpt2) -> None:
    """Each has an error in its own row, and the others their answers."""
    rows: list[Row] = [{"regex": expression} for expression in REFUSED]
    rows += [{"json_schema": schema} for schema in REFUSED_SCHEMAS]
    messages = [*REFUSED.values(), *REFUSED_SCHEMAS.values()]
    rows += [
        {"regex": "a", "json_schema": "{}"},
        {"regex": "a", "choices": ["a"]},
        {"regex": "a", "stop_strings": ["a"]},
    ]
    messages += ["not both", "choices are scored", "stop_strings could cut"]
    rows = numbered([{"prompt": "x", **row} for row in rows])
    good = {"prompt_id": 1000, "prompt": "x", "regex": "good", "max_new_tokens": 9}
    runs.write_prompts([good])
    runs.execute(
        f"drop table {SCHEMA}.test_prompts; create table {SCHEMA}.test_prompts ("
        "prompt_id integer, prompt text, regex text, json_schema text, choices jsonb, "
        "stop_strings jsonb, max_new_tokens integer)"
    )
    for row in [*rows, good]:
        values = {
            name: json.dumps(value) if isinstance(value, list) else value
            for name, value in row.items()
        }
        runs.execute(
            f"insert into {SCHEMA}.test_prompts ({', '.join(values)}) "
            f"values ({', '.join(['%s'] * len(values))})",
            [*values.values()],
        )
    runs.run()
    completions = runs.completions()
    for row, message in zip(rows, messages, strict=True):
        assert message in (completions[row["prompt_id"]]["error"] or ""), row
    assert completions[1000]["completion"] == "good"
    assert runs.query(f"select * from {SCHEMA}.form_automata") == []


def test_option_of_all(runs: Gpt2) -> None:
    """The var may be a dict, whose order of fields stays."""
    schema = {
        "type": "object",
        "properties": {"long_name": {"type": "boolean"}, "b": {"type": "null"}},
        "required": ["long_name", "b"],
    }
    completions = runs.complete(
        [{"prompt_id": 1, "prompt": "Is it so?"}],
        **{f"{TEXT}_options": {"json_schema": schema, "max_new_tokens": 60}},
    )
    assert re.fullmatch(
        r'\{ ?"long_name" ?: ?(true|false) ?, ?"b" ?: ?null ?\}',
        completions[1]["completion"],
    )


def test_tables_are_made_again(runs: Gpt2) -> None:
    """What a crash of the server empties, while answers are written."""
    rows = numbered(
        [
            {"prompt": "It", "regex": r"(\w+ ){3}\w+\.", "max_new_tokens": 60}
            | {"temperature": 1.0, "seed": seed}
            for seed in range(5)
        ]
    )
    expected = runs.complete(rows)
    ended = threading.Event()

    def crash() -> None:
        while not ended.wait(0.05):
            runs.execute(f"truncate {SCHEMA}.form_automata cascade")

    thread = threading.Thread(target=crash)
    thread.start()
    try:
        found = runs.complete(rows, "--full-refresh")
    finally:
        ended.set()
        thread.join()
    assert {n: row["completion"] for n, row in found.items()} == {
        n: row["completion"] for n, row in expected.items()
    }


def test_fields(runs: Gpt2) -> None:
    """The answers' fields as columns, each of its type; NULL where there is none."""
    answer = {
        "zname": "Ann",
        "age": 30,
        "mood": 3,
        "tags": [True],
        "born": "2024-02-29",
        "score": 1.5,
        "inner": {"a": None},
        "const": "a{1}",
    }
    rows = [json.dumps(answer), "{}", "cut", None]
    runs.execute(f"drop table if exists {SCHEMA}.answers")
    runs.execute(f"create table {SCHEMA}.answers (row_number integer, completion text)")
    for n, row in enumerate(rows):
        runs.execute(f"insert into {SCHEMA}.answers values (%s, %s)", [n, row])
    query = (
        "select row_number, {{ dbt_nn.answer_fields("
        + repr(json.dumps(PERSON))
        + ") }} "
        f"from {SCHEMA}.answers"
    )
    done = runs.dbt(
        *("--quiet", "compile", "--inline", query), *runs.arguments(),
        env=runs.environment,
    )  # fmt: skip
    found = runs.query(done.stdout.strip() + " order by row_number")
    columns = [*PERSON["properties"]]
    assert [*found[0]] == ["row_number", *columns]
    assert str(found[0]["born"]) == "2024-02-29"
    assert float(found[0]["score"]) == 1.5
    for name in ("zname", "age", "mood", "tags", "inner", "const"):
        assert found[0][name] == answer[name]
    for row in found[1:]:
        assert [row[name] for name in columns] == [None] * len(columns)
