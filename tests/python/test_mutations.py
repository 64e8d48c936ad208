"""Tests of the tests: what breaks a macro or a result turns dbt's tests red."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from conftest import Dbt
from gpt2_runs import PROJECT, TWIN, Gpt2, copy_project, load_checkpoint

Results = dict[str, str]  # name of a test -> pass, fail or error


@dataclass(frozen=True)
class Mutation:
    """A mistake in a macro, and the unit test that has to see it."""

    name: str
    file: str  # in macros/
    old: str
    new: str
    test: str
    status: str = "fail"  # or error: where the mistake cannot but raise one


MUTATIONS = [
    Mutation(
        "sample variance in a norm",
        "kernels/layer_norm.sql",
        "/ centered.n + ",
        "/ (centered.n - 1) + ",
        "layer_norm_has_the_population_variance",
    ),
    Mutation(
        "norm without epsilon",
        "kernels/layer_norm.sql",
        "'/ centered.n + ' ~ epsilon ~ ')'",
        "'/ centered.n)'",
        "layer_norm_adds_epsilon_to_the_variance",
    ),
    Mutation(
        "norm without its bias",
        "kernels/layer_norm.sql",
        "    + norm.bias as",
        "    as",
        "layer_norm_scales_and_shifts",
    ),
    Mutation(
        "softmax without its maximum",
        "kernels/softmax.sql",
        "'element.x - largest.x'",
        "'element.x'",
        "softmax_subtracts_the_maximum",
        status="error",
    ),
    Mutation(
        "softmax that is not normalized",
        "kernels/softmax.sql",
        "broadcast('1 / exponentials.total'",
        "broadcast('1'",
        "softmax_subtracts_the_maximum",
    ),
    Mutation(
        "GELU in its exact form",
        "kernels/elementwise.sql",
        "tanh(\n        sqrt(2 / pi()) * {{ x }} "
        "* (1 + 0.044715 * {{ x }}::float8 * {{ x }})\n    )",
        "erf({{ x }} / sqrt(2))",
        "gelu_has_its_tanh_form",
    ),
    Mutation(
        "attention to what lies ahead",
        "kernels/attention.sql",
        "\n                and k.position <= queries.position",
        "",
        "attention_of_one_head",
    ),
    Mutation(
        "attention without its scale",
        "kernels/attention.sql",
        " / sqrt(queries.size)",
        "",
        "attention_of_one_head",
    ),
    Mutation(
        "attention to another sequence",
        "kernels/attention.sql",
        "where k.sequence_id = queries.sequence_id",
        "where true",
        "attention_of_one_head",
    ),
    Mutation(
        "heads in another order",
        "kernels/attention.sql",
        "order by outputs.head",
        "order by outputs.head desc",
        "attention_of_two_heads",
    ),
    Mutation(
        "linear layer without its bias",
        "kernels/linear.sql",
        " + w.bias",
        "",
        "linear_is_weight_times_input_plus_bias",
    ),
    Mutation(
        "output features in another order",
        "kernels/linear.sql",
        "order by w.feature\n",
        "order by w.feature desc\n",
        "linear_is_weight_times_input_plus_bias",
    ),
    Mutation(
        "only the first chunk of the input",
        "kernels/linear.sql",
        "generate_series(0, {{ chunk_count(x) }} - 1)",
        "generate_series(0, 0)",
        "linear_adds_up_chunks",
    ),
    Mutation(
        "positions counted from 1",
        "kernels/embedding.sql",
        "embedding_row(wpe, 'tokens.position')",
        "embedding_row(wpe, '1 + tokens.position')",
        "embedding_is_of_token_and_position",
    ),
    Mutation(
        "logits of the oldest place",
        "kernels/lm_head.sql",
        "later.position = x.position + 1",
        "later.position = x.position - 1",
        "logits_are_of_the_newest_place",
    ),
    Mutation(
        "values of a block in another order",
        "kernels/attention.sql",
        "array_agg(element.value order by x.position)",
        "array_agg(element.value order by x.position desc)",
        "complete_blocks_are_transposed",
    ),
    Mutation(
        "last token fed twice",
        "gpt2/gpt2_frontier.sql",
        "(select max(step) from",
        "(select max(step) - 1 from",
        "the_frontier_is_the_newest_step",
    ),
    Mutation(
        "largest id among equal logits",
        "gpt2/choose_token.sql",
        "order by score.x desc, score.i\n",
        "order by score.x desc, score.i desc\n",
        "greedy_tokens_are_the_likeliest",
    ),
    Mutation(
        "logits multiplied by the temperature",
        "gpt2/choose_token.sql",
        ") / {{ options }}.temperature",
        ") * {{ options }}.temperature",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "top_p without the token that passes it",
        "gpt2/choose_token.sql",
        "kept.above < ",
        "kept.above + kept.p < ",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "min_p of 1, not of the highest probability",
        "gpt2/choose_token.sql",
        " * kept.highest",
        "",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "repetition rewarded below 0",
        "gpt2/choose_token.sql",
        "when score.x < 0 then",
        "when false then",
        "tokens_that_came_before_are_penalized",
    ),
    Mutation(
        "same numbers for every position",
        "gpt2/choose_token.sql",
        "{{ sequence }}, {{ position }})",
        "{{ sequence }}, 0)",
        "random_numbers_are_a_function_of_the_place",
    ),
    Mutation(
        "longest alternative, of the other way to split spaces",
        "tokenizer/_pre_token_pattern.sql",
        "[{{ space }}]+(?![^{{ space }}])|[{{ space }}]\n",
        "[{{ space }}]+\n",
        "texts_are_split_as_the_reference_does",
    ),
    Mutation(
        "letters as Postgres has them in \\w",
        "tokenizer/_pre_token_pattern.sql",
        "'d| ?[{{ letter }}]+",
        "'d| ?\\w+",
        "texts_are_split_as_the_reference_does",
    ),
    Mutation(
        "leftmost pair first, whatever its rank",
        "tokenizer/byte_pair_encode.sql",
        "order by merge.rank, pair.i",
        "order by pair.i",
        "pairs_merge_by_rank",
    ),
    Mutation(
        "tokens decoded one by one",
        "tokenizer/token_text.sql",
        """decode_utf8(
        "string_agg(" ~ token ~ ", ''::bytea order by " ~ position ~ ")"
    )""",
        """"string_agg(" ~ decode_utf8(token) ~ ", '' order by " ~ position ~ ")\"""",
        "a_character_may_be_split_over_tokens",
    ),
    Mutation(
        "empty prompt without a token",
        "gpt2/gpt2_tokens.sql",
        "where prompts.prompt = '' and",
        "where false and",
        "prompts_turn_into_tokens",
        status="error",  # gpt2_tokens() finds it out itself
    ),
    Mutation(
        "options that win over a row's",
        "gpt2/gpt2_prompts.sql",
        "jsonb_strip_nulls({{ json_literal(options) }})\n"
        "            || jsonb_strip_nulls(to_jsonb(prompts))",
        "jsonb_strip_nulls(to_jsonb(prompts))\n"
        "            || jsonb_strip_nulls({{ json_literal(options) }})",
        "a_row_overrides_the_options",
    ),
]


def statuses(target: Path) -> Results:
    results = json.loads((target / "run_results.json").read_text(encoding="utf-8"))
    return {
        result["unique_id"].split(".")[-1]: result["status"]
        for result in results["results"]
        if result["unique_id"].startswith("unit_test.")
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project, without its networks: dbt reads it in less time."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    for network in (folder / "models").iterdir():
        if network.is_dir() and network.name != "unit_tests":
            shutil.rmtree(network)
    return folder


@pytest.fixture(scope="module")
def unit_tests(dbt: Dbt, project: Path) -> Callable[..., Results]:
    """Run unit tests of the copy."""

    def run(select: str) -> Results:
        target = project / "target"
        dbt(
            "test",
            "--select",
            select,
            "--project-dir",
            str(project),
            env={"DBT_NN_SCHEMA": "test_mutations", "DBT_TARGET_PATH": str(target)},
            check=False,
        )
        return statuses(target)

    return run


@pytest.fixture(scope="module")
def sound(unit_tests: Callable[..., Results]) -> Results:
    return unit_tests("unit_tests")


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mistake_in_a_macro_is_seen(
    project: Path,
    sound: Results,
    unit_tests: Callable[..., Results],
    mutation: Mutation,
) -> None:
    assert sound.get(mutation.test) == "pass", "without the mistake"
    file = project / "macros" / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.old) >= 1, "the macro has changed: so must the mistake"
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        assert unit_tests(mutation.test).get(mutation.test) == mutation.status
    finally:
        file.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_sound_macros_pass(sound: Results) -> None:
    assert set(sound.values()) == {"pass"}
    unseen = {mutation.test for mutation in MUTATIONS} - set(sound)
    assert not unseen


# --- Data tests: damage to a result, and the tests that have to see it --------

DAMAGE = {
    "a place is missing": (
        "delete from {layers}.gpt2_h_3_mlp_c_fc where position = 5",
        {"gpt2_h_3_mlp_c_fc_complete"},
    ),
    "an activation is NULL": (
        "update {layers}.gpt2_h_4_mlp_c_fc set activation = null where position = 5",
        {"gpt2_h_4_mlp_c_fc_complete"},
    ),
    "a place is too many": (
        "insert into {layers}.gpt2_h_5_mlp_c_fc values (9, 1, '[1,2]')",
        {"gpt2_h_5_mlp_c_fc_complete"},
    ),
    "an activation is too short": (
        "update {layers}.gpt2_h_6_mlp_c_fc "
        "set activation = subvector(activation, 1, 100) where position = 5",
        {"gpt2_h_6_mlp_c_fc_complete"},
    ),
    "sample variance": (
        "update {layers}.gpt2_ln_f as t set activation = "
        "(t.activation - w.bias) "
        "* array_fill(sqrt(127.0 / 128)::real, array[128])::vector + w.bias "
        "from gpt2_twin.ln_f as w where position = 5",
        {"gpt2_ln_f_normalized"},
    ),
    "a mean that is not 0": (
        "update {layers}.gpt2_h_3_ln_1 as t set activation = "
        "t.activation + w.weight * array_fill(0.001::real, array[128])::vector "
        "from gpt2_twin.h_3_ln_1 as w where position = 5",
        {"gpt2_h_3_ln_1_normalized"},
    ),
    "a key of another place": (
        "update {layers}.gpt2_h_3_attn_c_attn_k as k set activation = other.activation "
        "from {layers}.gpt2_h_3_attn_c_attn_k as other where k.position = 0 "
        "and other.position = 1 and k.sequence_id = other.sequence_id",
        {"gpt2_h_3_attn_causal"},
    ),
    "a value of another place": (
        "update {layers}.gpt2_h_4_attn_c_attn_v as v set activation = other.activation "
        "from {layers}.gpt2_h_4_attn_c_attn_v as other where v.position = 0 "
        "and other.position = 1 and v.sequence_id = other.sequence_id",
        {"gpt2_h_4_attn_causal", "gpt2_h_4_attn_v_blocks_transposed"},
    ),
    "a block is missing": (
        "delete from {layers}.gpt2_h_5_attn_v_blocks",
        {"gpt2_h_5_attn_v_blocks_transposed"},
    ),
    "NaN in the logits": (
        "update {layers}.gpt2_lm_head set logits[7] = 'NaN' "
        "where (sequence_id, position) in "
        "(select sequence_id, max(position) from {layers}.gpt2_lm_head group by 1)",
        {"gpt2_lm_head_complete", "gpt2_completion_tokens_logprobs"},
    ),
    "a logprob": (
        "update {schema}.gpt2_completion_tokens set logprob = logprob * 1.001",
        {"gpt2_completion_tokens_logprobs"},
    ),
    "a rank": (
        "update {schema}.gpt2_completion_tokens set rank = 2",
        {"gpt2_completion_tokens_logprobs"},
    ),
    "alternatives out of order": (
        "update {schema}.gpt2_completion_tokens "
        "set alternatives = jsonb_path_query_array(alternatives, '$[1,0,2,3,4]')",
        {"gpt2_completion_tokens_logprobs"},
    ),
    "an alternative twice": (
        "update {schema}.gpt2_completion_tokens "
        "set alternatives = jsonb_path_query_array(alternatives, '$[0,0,2,3,4]')",
        {"gpt2_completion_tokens_logprobs"},
    ),
    "a piece of text": (
        "update {schema}.gpt2_completion_tokens set piece = 'Zz' where sequence_id = 1",
        {"gpt2_completions_match_tokens"},
    ),
    "no completion": (
        "delete from {schema}.gpt2_completions",
        {"gpt2_completions_match_tokens"},
    ),
    "an unknown finish_reason": (
        "update {schema}.gpt2_completions set finish_reason = 'because'",
        {"gpt2_completions_match_tokens", "gpt2_completions_finish_reason_known"},
    ),
    "a completion twice": (
        "insert into {schema}.gpt2_completions select * from {schema}.gpt2_completions",
        {"gpt2_completions_prompt_id_unique"},
    ),
    "no text": (
        "update {schema}.gpt2_completions set completion = null",
        {"gpt2_completions_match_tokens", "gpt2_completions_completion_not_null"},
    ),
}


@pytest.fixture(scope="module")
def gpt2(
    dbt: Dbt,
    connection: psycopg2.extensions.connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gpt2]:
    load_checkpoint(TWIN, "gpt2_twin")
    runs = Gpt2(dbt, connection, "test_damage", tmp_path_factory.mktemp("target"))
    runs.complete(
        [
            {"prompt_id": 1, "prompt": "I am sure. " * 20, "max_new_tokens": 3},
            {"prompt_id": 2, "prompt": "Emma was very much pleased with her"}
            | {"max_new_tokens": 3, "temperature": 0.8},
        ]
    )
    yield runs
    runs.drop()


def compiled_tests(gpt2: Gpt2) -> dict[str, str]:
    """The data tests' queries, as dbt compiled them."""
    gpt2.dbt("test", "--select", "gpt2", *gpt2.arguments(), env=gpt2.environment)
    manifest = json.loads((gpt2.target / "manifest.json").read_text(encoding="utf-8"))
    queries = {}
    for node in manifest["nodes"].values():
        path = node.get("compiled_path")
        if node["resource_type"] == "test" and path:
            queries[node["name"]] = (PROJECT / path).read_text(encoding="utf-8")
    return queries


@pytest.mark.slow
def test_damage_to_a_result_is_seen(gpt2: Gpt2) -> None:
    """By the data tests that are meant to, once all of them have passed."""
    queries = compiled_tests(gpt2)
    layers = f"{gpt2.schema}_gpt2"
    gpt2.connection.autocommit = False
    try:
        for what, (statement, expected) in DAMAGE.items():
            gpt2.execute(statement.format(schema=gpt2.schema, layers=layers))
            for name in sorted(expected):
                assert gpt2.query(queries[name]), f"{name} has not seen: {what}"
            gpt2.connection.rollback()
    finally:
        gpt2.connection.rollback()
        gpt2.connection.autocommit = True
