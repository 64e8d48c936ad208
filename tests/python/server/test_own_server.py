"""GPT-2 on a server that a user brings: PostgreSQL 16, TCP, no superuser."""

from __future__ import annotations

import contextlib

import pytest
from psycopg2.extensions import connection as Connection

from conftest import Dbt, OwnServer
from runs import TWIN, load_checkpoint

OPTIONS = "{gpt2_options: {temperature: 0.9, seed: 3, max_new_tokens: 12}}"
RESULT = """
    select
        prompt_id, prompt, completion, finish_reason, prompt_tokens,
        completion_tokens
    from test_own_server.gpt2_completions order by prompt_id
"""


def run(dbt: Dbt, environment: dict[str, str]) -> None:
    env = {**environment, "DBT_NN_SCHEMA": "test_own_server"}
    load_checkpoint(TWIN, "gpt2_twin", environment)
    dbt("seed", "--select", "dbt_nn_prompts", env=env)
    dbt("run", "--select", "gpt2", "--vars", OPTIONS, env=env)


@pytest.mark.long
def test_same_completions(
    dbt: Dbt, connection: Connection, own_server: OwnServer
) -> None:
    """Sampled, so that every logit takes part."""
    run(dbt, {})
    run(dbt, own_server.environment)
    cursor = connection.cursor()
    cursor.execute(RESULT)
    expected = cursor.fetchall()
    cursor.execute("drop schema test_own_server cascade")
    with contextlib.closing(own_server.connect()) as own:
        cursor = own.cursor()
        cursor.execute("show server_version")
        assert cursor.fetchone()[0].split(".")[0] == own_server.version
        cursor.execute(RESULT)
        assert cursor.fetchall() == expected
    assert all(completion for _, _, completion, *_ in expected)
