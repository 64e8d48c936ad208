"""Tests of the tests: what breaks a macro or a result turns dbt's tests red."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from conftest import Dbt
from macros import copy_unit_tests
from runs import PROJECT, TWIN, Gpt2, load_checkpoint

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
        "engines/postgres/fast/layer_norm.sql",
        "broadcast('sqrt(stored.n)'",
        "broadcast('sqrt(stored.n - 1)'",
        "layer_norm_has_the_population_variance",
    ),
    Mutation(
        "norm without epsilon",
        "engines/postgres/fast/layer_norm.sql",
        "'sqrt(stored.n * ' ~ epsilon ~ ')'",
        "'0'",
        "layer_norm_adds_epsilon_to_the_variance",
    ),
    Mutation(
        "norm without its bias",
        "engines/postgres/fast/layer_norm.sql",
        " + norm.bias as",
        " as",
        "layer_norm_scales_and_shifts",
    ),
    Mutation(
        "softmax without its maximum",
        "engines/postgres/fast/softmax.sql",
        "'element.x - largest.x'",
        "'element.x'",
        "softmax_subtracts_the_maximum",
        status="error",
    ),
    Mutation(
        "softmax that is not normalized",
        "engines/postgres/fast/softmax.sql",
        "broadcast('1 / exponentials.total'",
        "broadcast('1'",
        "softmax_subtracts_the_maximum",
    ),
    Mutation(
        "GELU in its exact form",
        "kernels/elementwise.sql",
        "{{ x }} / (1 + exp(greatest(least(\n"
        "        -sqrt(8 / pi()) * {{ x }} * (1 + 0.044715 * {{ x }}::float8 "
        "* {{ x }}), 700\n    ), -700)))",
        "0.5 * {{ x }} * (1 + erf({{ x }} / sqrt(2)))",
        "gelu_has_its_tanh_form",
    ),
    Mutation(
        "GELU in its tanh form",
        "kernels/elementwise.sql",
        "(1 + erf({{ x }} / sqrt(2)))",
        "(1 + tanh(sqrt(2 / pi()) * ({{ x }} + 0.044715 * {{ x }} ^ 3)))",
        "gelu_has_its_exact_form",
    ),
    Mutation(
        "attention to what lies ahead",
        "engines/postgres/fast/attention.sql",
        "        and newest.position <= {{ row }}.position\n",
        "",
        "attention_of_one_head",
    ),
    Mutation(
        "attention to blocks that lie ahead",
        "engines/postgres/fast/attention.sql",
        "            and keys.block < {{ first }}\n",
        "",
        "attention_reads_blocks_that_are_of_its_past",
    ),
    Mutation(
        "attention without its scale",
        "engines/postgres/fast/attention.sql",
        "'0.5 / sqrt(first.n / first.heads)'",
        "'0.5'",
        "attention_of_one_head",
    ),
    Mutation(
        "weights that do not sum to 1",
        "engines/postgres/fast/softmax_of_halves.sql",
        "e := l2_normalize(e);",
        "",
        "attention_of_one_head",
    ),
    Mutation(
        "parts of a head in another order",
        "engines/postgres/fast/attention.sql",
        "features.activation order by features.part",
        "features.activation order by features.part desc",
        "attention_reads_blocks_that_are_of_its_past",
    ),
    Mutation(
        "positions of a long block twice",
        "engines/postgres/fast/attention.sql",
        "places ~ ' / ' ~ long ~ ' * ' ~ long // short",
        "'0'",
        "attention_reads_blocks",
    ),
    Mutation(
        "no newest value",
        "engines/postgres/fast/attention.sql",
        "where {{ places }} % {{ short }} > 0",
        "where false",
        "attention_reads_blocks",
    ),
    Mutation(
        "attention to another sequence",
        "engines/postgres/fast/attention.sql",
        "where newest.sequence_id = {{ row }}.sequence_id",
        "where true",
        "attention_of_one_head",
    ),
    Mutation(
        "heads in another order",
        "engines/postgres/fast/attention.sql",
        "order by outputs.head",
        "order by outputs.head desc",
        "attention_of_two_heads",
    ),
    Mutation(
        "linear layer without its bias",
        "engines/postgres/fast/linear.sql",
        " + w.bias",
        "",
        "linear_is_weight_times_input_plus_bias",
    ),
    Mutation(
        "output features in another order",
        "engines/postgres/fast/linear.sql",
        "order by w.feature\n",
        "order by w.feature desc\n",
        "linear_is_weight_times_input_plus_bias",
    ),
    Mutation(
        "only the first chunk of the input",
        "engines/postgres/fast/linear.sql",
        "generate_series(0, {{ dbt_nn.chunk_count(x) }} - 1)",
        "generate_series(0, 0)",
        "linear_adds_up_chunks",
    ),
    Mutation(
        "many inputs without a bias",
        "engines/postgres/fast/linear.sql",
        "+ blocks.biases as outputs",
        "as outputs",
        "linear_of_several_places",
    ),
    Mutation(
        "blocks of features in another order",
        "engines/postgres/fast/linear.sql",
        "order by sums.block) as activation",
        "order by sums.block desc) as activation",
        "linear_of_several_places_in_blocks",
    ),
    Mutation(
        "blocks that overlap",
        "engines/postgres/fast/linear.sql",
        "and feature < (block.number + 1)",
        "and feature <= (block.number + 1)",
        "linear_of_several_places_in_blocks",
    ),
    Mutation(
        "only the first chunk of many inputs",
        "engines/postgres/fast/linear.sql",
        "group by {{ dbt_nn.place('products') }}, products.block",
        "where products.chunk = 0 "
        "group by {{ dbt_nn.place('products') }}, products.block",
        "linear_of_several_places_in_blocks",
    ),
    Mutation(
        "a root mean square norm of the sum",
        "engines/postgres/fast/rms_norm.sql",
        "repeated('sqrt(stored.n)'",
        "repeated('1'",
        "rms_norm_scales",
    ),
    Mutation(
        "a root mean square norm without epsilon",
        "engines/postgres/fast/rms_norm.sql",
        "'sqrt(stored.n * ' ~ epsilon ~ ')'",
        "'0'",
        "rms_norm_adds_epsilon_to_the_mean_square",
    ),
    Mutation(
        "a gate that is open",
        "engines/postgres/fast/linear.sql",
        "~ dbt_nn.flushed('gated.activation', 'tiny.x')",
        "~ 'array_fill(1::real, array[vector_dims(gated.activation)])::vector'",
        "gate_times_what_it_lets_through",
    ),
    Mutation(
        "a gate whose product underflows",
        "engines/postgres/fast/linear.sql",
        "dbt_nn.flushed(y, 'tiny.x') ~ ' * '",
        "y ~ ' * '",
        "gate_that_is_shut",
        status="error",
    ),
    Mutation(
        "heads that turn the other way",
        "engines/postgres/fast/rotary_linear.sql",
        "sin := (sin - sin - sin) || sin;",
        "sin := sin || (sin - sin - sin);",
        "heads_turn",
    ),
    Mutation(
        "pairs of neighbours",
        "engines/postgres/fast/rotary_linear.sql",
        "half constant integer := n / 2;",
        "half constant integer := greatest(n / 4, 1);",
        "heads_turn",
        status="error",
    ),
    Mutation(
        "one head that turns for all",
        "engines/postgres/fast/rotary_linear.sql",
        "head := subvector(x, number * n + 1, n) + tiny - tiny;\n"
        "            head := head * cos",
        "head := subvector(x, 1, n) + tiny - tiny;\n            head := head * cos",
        "two_heads_turn",
    ),
    Mutation(
        "heads that are not normed",
        "engines/postgres/fast/rotary_linear.sql",
        "head := subvector(l2_normalize(head || last), 1, n) * scale;",
        "head := head * scale;",
        "heads_are_normed_before_they_turn",
    ),
    Mutation(
        "angles that do not grow with the position",
        "kernels/rotary_embedding.sql",
        "pairs.position::real * (",
        "1::real * (",
        "rotary_angles",
    ),
    Mutation(
        "all frequencies alike",
        "kernels/rotary_embedding.sql",
        "end ^ (-2.0 * pair.i / rope.size)",
        "end ^ (-2.0 * 0 * pair.i / rope.size)",
        "rotary_angles",
    ),
    Mutation(
        "scaling of the wrong end",
        "kernels/rotary_embedding.sql",
        "when 'llama3' then part.kept + (1 - part.kept) / rope.factor",
        "when 'llama3' then 1 - part.kept + part.kept / rope.factor",
        "rotary_angles_of_llama3",
    ),
    Mutation(
        "a ramp that is not truncated",
        "kernels/rotary_embedding.sql",
        "case when given.truncates then floor(ramp.low) else ramp.low end",
        "ramp.low",
        "rotary_angles_of_yarn",
    ),
    Mutation(
        "angles without their scale",
        "kernels/rotary_embedding.sql",
        "coalesce(rope.attention_factor, 1) as scale",
        "1 as scale",
        "rotary_angles_of_yarn",
    ),
    Mutation(
        "scaling by the position",
        "kernels/rotary_embedding.sql",
        "max(tokens.position) over (\n"
        "                        partition by tokens.sequence_id, tokens.step\n"
        "                    ) + 1",
        "tokens.position + 1",
        "rotary_angles_of_a_length",
    ),
    Mutation(
        "keys of another head",
        "engines/postgres/fast/attention.sql",
        "head.number / x.queries_a_key * x.size as start",
        "head.number * x.size as start",
        "attention_of_heads_that_share_keys",
        status="error",
    ),
    Mutation(
        "a window that begins one place early",
        "engines/postgres/fast/attention.sql",
        "greatest({{ position }} - {{ window }} + 1, 0)",
        "greatest({{ position }} - {{ window }}, 0)",
        "attention_in_a_window",
    ),
    Mutation(
        "positions counted from 1",
        "kernels/embedding.sql",
        "set position = 'tokens.position'",
        "set position = '1 + tokens.position'",
        "embedding_is_of_token_and_position",
    ),
    Mutation(
        "logits of the oldest place",
        "kernels/lm_head.sql",
        "later.position = {{ alias }}.position + 1",
        "later.position = {{ alias }}.position - 1",
        "logits_are_of_the_newest_place",
    ),
    Mutation(
        "values of a block in another order",
        "engines/postgres/fast/attention.sql",
        "    and x.position <= {{ last }}.position\norder by x.position\n",
        "    and x.position <= {{ last }}.position\norder by x.position desc\n",
        "complete_blocks_are_kept",
    ),
    Mutation(
        "parts of a long block in another order",
        "engines/postgres/fast/attention.sql",
        "lag(transposed.x, {{ long // short - 1 - i }})",
        "lag(transposed.x, {{ i }})",
        "complete_blocks_are_kept",
    ),
    Mutation(
        "short blocks that are kept again with their long one",
        "engines/postgres/fast/attention.sql",
        "    where transposed.is_short\n",
        "",
        "complete_blocks_are_kept",
    ),
    Mutation(
        "a long block at each short one of its end",
        "engines/postgres/fast/attention.sql",
        "    where parts.ends_long\n",
        "",
        "complete_blocks_are_kept",
    ),
    Mutation(
        "weights that underflow",
        "engines/postgres/fast/attention.sql",
        " ~ ' > 1e-17 then ' ~ ",
        " ~ ' >= 0 then ' ~ ",
        "attention_of_a_value_near_zero",
        status="error",
    ),
    Mutation(
        "last token fed twice",
        "text/frontier.sql",
        "(select max(step) from",
        "(select max(step) - 1 from",
        "the_frontier_is_the_newest_step",
    ),
    Mutation(
        "largest id among equal logits",
        "text/choose_token.sql",
        "order by score.x desc, token_id\n",
        "order by score.x desc, token_id desc\n",
        "greedy_tokens_are_the_likeliest",
    ),
    Mutation(
        "slices of logits with the lowest maxima",
        "text/choose_token.sql",
        "as score) desc,",
        "as score),",
        "greedy_tokens_are_the_likeliest",
    ),
    Mutation(
        "one slice of logits too few",
        "text/choose_token.sql",
        "limit {{ k }}\n) as slice",
        "limit {{ k }} - 1\n) as slice",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "logits multiplied by the temperature",
        "text/choose_token.sql",
        ") / {{ temperature }}",
        ") * {{ temperature }}",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "top_p without the token that passes it",
        "text/choose_token.sql",
        "kept.above < ",
        "kept.above + kept.p < ",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "min_p of 1, not of the highest probability",
        "text/choose_token.sql",
        " * kept.highest",
        "",
        "sampled_tokens_follow_the_options",
    ),
    Mutation(
        "repetition rewarded below 0",
        "text/choose_token.sql",
        "when score.x < 0\n",
        "when false\n",
        "tokens_that_came_before_are_penalized",
    ),
    Mutation(
        "same numbers for every position",
        "text/choose_token.sql",
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
        """dbt_nn.decode_utf8(
        "string_agg(" ~ token ~ ", ''::bytea order by " ~ position ~ ")"
    )""",
        """"string_agg(" ~ dbt_nn.decode_utf8(token)
        ~ ", '' order by " ~ position ~ ")\"""",
        "a_character_may_be_split_over_tokens",
    ),
    Mutation(
        "empty prompt without a token",
        "text/prompts.sql",
        "when token.ids = '{}'\n                then array[",
        "when false\n                then array[",
        "prompts_turn_into_tokens",
    ),
    Mutation(
        "options that win over a row's",
        "text/prompts.sql",
        "checked_options.options\n        || {{ dbt_nn.given_fields('prompts.fields', "
        "names, 'given_columns') | indent(8) }}",
        "{{ dbt_nn.given_fields('prompts.fields', names, 'given_columns') }} "
        "|| checked_options.options",
        "a_row_overrides_the_options",
    ),
    Mutation(
        "a kernel with columns in reverse",
        "engines/postgres/fast/conv2d.sql",
        "(partition by image_id, y order by x)",
        "(partition by image_id, y order by x desc)",
        "conv2d_sees_the_neighbours",
    ),
    Mutation(
        "a kernel with rows in reverse",
        "engines/postgres/fast/conv2d.sql",
        "(partition by image_id, x order by y)",
        "(partition by image_id, x order by y desc)",
        "conv2d_sees_the_neighbours",
    ),
    Mutation(
        "a kernel that is transposed",
        "engines/postgres/fast/conv2d.sql",
        "(partition by image_id, y order by x)\n),\n\npatches as (\n"
        "    select\n        image_id,\n        y,\n        x,\n"
        "        {{ dbt_nn.with_neighbours('activation', 'down', "
        "'vector_dims(activation)') }} as activation\n"
        "    from in_row\n"
        "    window down as (partition by image_id, x order by y)",
        "(partition by image_id, x order by y)\n),\n\npatches as (\n"
        "    select\n        image_id,\n        y,\n        x,\n"
        "        {{ dbt_nn.with_neighbours('activation', 'down', "
        "'vector_dims(activation)') }} as activation\n"
        "    from in_row\n"
        "    window down as (partition by image_id, y order by x)",
        "conv2d_sees_the_neighbours",
    ),
    Mutation(
        "neighbours in another image",
        "engines/postgres/fast/conv2d.sql",
        "(partition by image_id, x order by y)",
        "(partition by x order by y)",
        "conv2d_sees_the_neighbours",
    ),
    Mutation(
        "no zeros outside the image",
        "engines/postgres/fast/conv2d.sql",
        "{{ dbt_nn.broadcast('0', n) }}",
        "{{ x }}",
        "conv2d_sees_the_neighbours",
    ),
    Mutation(
        "every second place, the others",
        "engines/postgres/fast/conv2d.sql",
        "% {{ stride }} = 1 - {{ padding }}",
        "% {{ stride }} = {{ padding }}",
        "conv2d_of_every_second_place",
    ),
    Mutation(
        "the same places whatever the padding",
        "engines/postgres/fast/conv2d.sql",
        "= 1 - {{ padding }}",
        "= 0",
        "conv2d_padded_on_the_right_and_below",
    ),
    Mutation(
        "convolution without the timestep",
        "engines/postgres/fast/conv2d.sql",
        "    + time_embedding.activation\n",
        "",
        "conv2d_adds_the_timestep_and_the_residual",
    ),
    Mutation(
        "convolution without the residual",
        "engines/postgres/fast/conv2d.sql",
        "    + residual.activation\n",
        "",
        "conv2d_adds_the_timestep_and_the_residual",
    ),
    Mutation(
        "a kernel of 3 by 3 always",
        "kernels/conv2d.sql",
        "kernel_size == 1",
        "false",
        "conv2d_of_one_place",
        status="error",
    ),
    Mutation(
        "groups that alternate",
        "engines/postgres/fast/group_norm.sql",
        "number * images.size + 1",
        "number + 1",
        "group_norm_of_one_place",
    ),
    Mutation(
        "sample variance in a group norm",
        "engines/postgres/fast/group_norm.sql",
        "group_mean('part.square') ~ ' + '",
        "group_mean('part.square') ~ ' * 4 / 3 + '",  # of four in a group
        "group_norm_has_the_population_variance",
    ),
    Mutation(
        "group norm without epsilon",
        "engines/postgres/fast/group_norm.sql",
        "' + ' ~ epsilon ~ ')'",
        "' + 1e-12)'",
        "group_norm_adds_epsilon_to_the_variance",
    ),
    Mutation(
        "group norm without its weight",
        "engines/postgres/fast/group_norm.sql",
        " ~ ' * ' ~ dbt_nn.flushed('norm.weight', 'norm.tiny')",
        "",
        "group_norm_scales_and_shifts",
    ),
    Mutation(
        "group norm without its bias",
        "engines/postgres/fast/group_norm.sql",
        " + scales.bias as activation",
        " as activation",
        "group_norm_scales_and_shifts",
    ),
    Mutation(
        "group norm without its activation",
        "engines/postgres/fast/group_norm.sql",
        "{% if activation -%}",
        "{% if false -%}",
        "group_norm_applies_its_activation",
    ),
    Mutation(
        "SiLU with another sign",
        "kernels/elementwise.sql",
        "{{ x }} / (1 + exp(greatest(least(-{{ x }}::float8, 700), -700)))",
        "{{ x }} / (1 + exp(greatest(least({{ x }}::float8, 700), -700)))",
        "activation_layer_is_of_each_element",
    ),
    Mutation(
        "SiLU that overflows",
        "kernels/elementwise.sql",
        "{{ x }} / (1 + exp(greatest(least(-{{ x }}::float8, 700), -700)))",
        "{{ x }} / (1 + exp(-{{ x }}::float8))",
        "silu_near_and_far_below_0",
        status="error",
    ),
    Mutation(
        "SiLU that underflows",
        "kernels/elementwise.sql",
        "{{ x }} / (1 + exp(greatest(least(-{{ x }}::float8, 700), -700)))",
        "{{ x }} / (1 + exp(least(-{{ x }}::float8, 700)))",
        "silu_of_large_numbers",
        status="error",
    ),
    Mutation(
        "softmax that underflows",
        "engines/postgres/fast/softmax.sql",
        ", lowest=-80",
        "",
        "softmax_subtracts_the_maximum",
        status="error",
    ),
    Mutation(
        "a layer without its activation",
        "kernels/elementwise.sql",
        "{{ dbt_nn.elementwise(activation, 'x.activation') }} as activation",
        "x.activation",
        "activation_layer_is_of_each_element",
    ),
    Mutation(
        "whole texts without the scale of scores",
        "engines/postgres/fast/whole_attention.sql",
        "scaled_exp_constants('0.5 / sqrt(shape.size)')",
        "scaled_exp_constants('0.5')",
        "attention_to_the_whole_text",
    ),
    Mutation(
        "whole texts with weights of half the scores",
        "engines/postgres/fast/whole_attention.sql",
        "root.x * root.x",
        "root.x",
        "attention_to_the_whole_text",
    ),
    Mutation(
        "heads of whole texts in another order",
        "engines/postgres/fast/whole_attention.sql",
        "order by outputs.head, outputs.part",
        "order by outputs.head desc, outputs.part",
        "attention_to_the_whole_text",
    ),
    Mutation(
        "exp() of large scores without the maximum",
        "engines/postgres/functions/create_attention_functions.sql",
        "if bound > 21 then",
        "if bound > 1e30 then",
        "attention_to_the_whole_text_of_scores_far_apart",
        status="error",
    ),
    Mutation(
        "exp() of vectors beyond its range",
        "engines/postgres/fast/exponential.sql",
        "bound.x <= 32",
        "bound.x <= 1e30",
        "spatial_attention_subtracts_the_maximum",
        status="error",
    ),
    Mutation(
        "spatial attention without its scale",
        "engines/postgres/fast/spatial_attention.sql",
        "'1 / sqrt(shape.size)'",
        "'1'",
        "spatial_attention_of_two_heads",
    ),
    Mutation(
        "spatial heads in another order",
        "engines/postgres/fast/spatial_attention.sql",
        "order by outputs.head",
        "order by outputs.head desc",
        "spatial_attention_of_two_heads",
    ),
    Mutation(
        "one head for all",
        "engines/postgres/fast/spatial_attention.sql",
        "coalesce({{ head_size }}, n)",
        "n",
        "spatial_attention_of_two_heads",
    ),
    Mutation(
        "keys that are not skewed",
        "engines/postgres/fast/spatial_attention.sql",
        "feature.i + images.size - 1 - j)",
        "feature.i + images.size - 1)",
        "spatial_attention_of_two_heads",
    ),
    Mutation(
        "one squaring too few",
        "engines/postgres/functions/create_functions.sql",
        "for i in 1..squarings",
        "for i in 2..squarings",
        "spatial_attention_of_scores_of_sixteen",
    ),
    Mutation(
        "products that underflow",
        "engines/postgres/fast/exponential.sql",
        "({{ x }} + {{ tiny }} - {{ tiny }})",
        "({{ x }})",
        "spatial_attention_of_tiny_numbers",
        status="error",
    ),
    Mutation(
        "weights that do not sum to 1",
        "engines/postgres/fast/spatial_attention.sql",
        " / total.x\n",
        "\n",
        "spatial_attention_of_zeros_is_the_mean",
    ),
    Mutation(
        "keys of another image",
        "engines/postgres/fast/spatial_attention.sql",
        "    inner join value_features using (image_id)\n",
        "    cross join (select x from value_features limit 1) as value_features\n",
        "spatial_attention_of_zeros_is_the_mean",
        status="error",  # more weights than values
    ),
    Mutation(
        "sines for cosines",
        "kernels/timestep_embedding.sql",
        "= sizes.cosine_first",
        "<> sizes.cosine_first",
        "timesteps_are_cosines_and_sines",
    ),
    Mutation(
        "cosines first, whatever the config",
        "kernels/timestep_embedding.sql",
        "= sizes.cosine_first",
        "= true",
        "timesteps_are_sines_and_cosines",
    ),
    Mutation(
        "frequencies without freq_shift",
        "kernels/timestep_embedding.sql",
        "(sizes.n / 2 - sizes.freq_shift)",
        "(sizes.n / 2)",
        "timesteps_are_sines_and_cosines",
    ),
    Mutation(
        "an odd width without its zero",
        "kernels/timestep_embedding.sql",
        "when element.i >= element.half * 2 then 0",
        "when false then 0",
        "timestep_embedding_of_odd_width_ends_with_zero",
    ),
    Mutation(
        "an upsampled image that is transposed",
        "kernels/resample.sql",
        "x.y * 2 + down.i as y,\n    x.x * 2 + across.i as x",
        "x.x * 2 + across.i as y,\n    x.y * 2 + down.i as x",
        "a_place_becomes_four",
    ),
    Mutation(
        "every other place of an upsampled image",
        "kernels/resample.sql",
        "x.x * 2 + across.i",
        "x.x + 2 * across.i",
        "a_place_becomes_four",
    ),
    Mutation(
        "a skip connection that comes first",
        "kernels/resample.sql",
        "x.activation || skip.activation",
        "skip.activation || x.activation",
        "channels_lie_side_by_side",
    ),
    Mutation(
        "betas of the paper, whatever the scheduler",
        "diffusion/schedule.sql",
        "{{ dbt_nn.hyperparameter(scheduler, 'beta_start', 'float8') }} "
        "as beta_start,\n"
        "        {{ dbt_nn.hyperparameter(scheduler, 'beta_end', 'float8') }} "
        "as beta_end",
        "0.0001::float8 as beta_start,\n        0.02::float8 as beta_end",
        "linear_noise_schedule",
    ),
    Mutation(
        "betas that miss their end by one",
        "diffusion/schedule.sql",
        "(beta_end - beta_start) * t / greatest(steps - 1, 1)",
        "(beta_end - beta_start) * t / steps",
        "linear_noise_schedule",
    ),
    Mutation(
        "scaled_linear as linear",
        "diffusion/schedule.sql",
        "when 'scaled_linear'\n",
        "when 'scaled'\n",
        "scaled_linear_noise_schedule",
    ),
    Mutation(
        "a cosine schedule that is not capped",
        "diffusion/schedule.sql",
        "                    0.999\n",
        "                    2\n",
        "cosine_noise_schedule",
        status="error",
    ),
    Mutation(
        "a cosine schedule that starts at the next timestep",
        "diffusion/schedule.sql",
        "(t + 1.0::float8) / steps + 0.008",
        "(t + 2.0::float8) / steps + 0.008",
        "cosine_noise_schedule",
    ),
    Mutation(
        "alpha for its product",
        "diffusion/schedule.sql",
        "exp(sum(ln(1 - beta)) over (order by timestep))",
        "1 - beta",
        "linear_noise_schedule",
    ),
    Mutation(
        "timesteps without their offset",
        "diffusion/schedule.sql",
        "                    + trained.steps_offset\n",
        "",
        "leading_timesteps",
    ),
    Mutation(
        "trailing timesteps one too late",
        "diffusion/schedule.sql",
        ")::integer - 1\n",
        ")::integer\n",
        "trailing_timesteps",
        status="error",
    ),
    Mutation(
        "trailing timesteps rounded at other halves",
        "diffusion/schedule.sql",
        "(trained.t - trained.t::float8 / requests.num_inference_steps)\n"
        "                        - trained.t\n",
        "-trained.t::float8 / requests.num_inference_steps\n",
        "trailing_timesteps_are_rounded_as_in_numpy",
    ),
    Mutation(
        "linspace that starts one too late",
        "diffusion/schedule.sql",
        "(trained.t - 1.0::float8)",
        "(trained.t - 0.0::float8)",
        "linspace_timesteps",
        status="error",
    ),
    Mutation(
        "DDIM's previous timestep, off by one",
        "diffusion/schedule.sql",
        "greatest(timestep - t / n, -1)",
        "greatest(timestep - t / n - 1, -1)",
        "leading_timesteps",
    ),
    Mutation(
        "DDIM's previous timestep as DDPM's",
        "diffusion/schedule.sql",
        "when 'ddim' then greatest(timestep - t / n, -1)",
        "when 'none' then 0",
        "trailing_timesteps",
    ),
    Mutation(
        "DDPM's previous timestep as DDIM's",
        "diffusion/schedule.sql",
        "lead(timestep) over (partition by image_id order by step), -1",
        "greatest(timestep - t / n, -1), -1",
        "trailing_timesteps",
    ),
    Mutation(
        "noise that is added to the picture",
        "diffusion/schedule.sql",
        "            when timestep = 0 then 0\n",
        "",
        "what_a_step_mixes_otherwise",
    ),
    Mutation(
        "the small variance, whatever the scheduler",
        "diffusion/schedule.sql",
        "when variance_type = 'fixed_large'",
        "when false",
        "what_a_step_mixes_otherwise",
    ),
    Mutation(
        "DDIM that ends with alpha 1, whatever the scheduler",
        "diffusion/schedule.sql",
        "not previous.set_alpha_to_one",
        "false",
        "what_a_step_mixes_otherwise",
    ),
    Mutation(
        "DDIM without eta",
        "diffusion/schedule.sql",
        "then eta * sqrt(variance)",
        "then sqrt(variance)",
        "what_a_step_mixes",
    ),
    Mutation(
        "DDIM that adds noise to all of the noise",
        "diffusion/schedule.sql",
        "1 - a_previous - sigma ^ 2",
        "1 - a_previous",
        "what_a_step_mixes",
    ),
    Mutation(
        "a posterior mean with alphas swapped",
        "diffusion/schedule.sql",
        "sqrt(a / a_previous) * (1 - a_previous)",
        "sqrt(a_previous / a) * (1 - a_previous)",
        "what_a_step_mixes",
    ),
    Mutation(
        "a picture that is not clipped",
        "diffusion/denoise.sql",
        "greatest(least(predicted.original, steps.bound), -steps.bound)",
        "predicted.original",
        "the_picture_predicted_is_clipped",
    ),
    Mutation(
        "a picture that is clipped above only",
        "diffusion/denoise.sql",
        "greatest(least(predicted.original, steps.bound), -steps.bound)",
        "least(predicted.original, steps.bound)",
        "the_picture_predicted_is_clipped",
    ),
    Mutation(
        "a picture clipped to 1, whatever the range",
        "diffusion/denoise.sql",
        "then {{ dbt_nn.hyperparameter(scheduler, 'clip_sample_range', 'float8') }}",
        "then 1.0::float8",
        "the_picture_predicted_is_clipped_to_a_range",
    ),
    Mutation(
        "a picture clipped, whatever the scheduler",
        "diffusion/denoise.sql",
        "when {{ dbt_nn.hyperparameter(scheduler, 'clip_sample', 'boolean') }}",
        "when true",
        "the_picture_predicted_is_not_clipped",
    ),
    Mutation(
        "v for epsilon",
        "diffusion/denoise.sql",
        "then steps.signal * element.sample - steps.noise * element.output",
        "then (element.sample - steps.noise * element.output) / steps.signal",
        "a_network_may_predict_v",
    ),
    Mutation(
        "the noise that is left of a picture predicted",
        "diffusion/denoise.sql",
        "(element.sample - steps.signal * element.output) / steps.noise",
        "element.output",
        "a_network_may_predict_the_picture",
    ),
    Mutation(
        "the same noise at every step",
        "diffusion/denoise.sql",
        "                frontier.step + 1,\n                frontier.y",
        "                1,\n                frontier.y",
        "each_step_has_noise_of_its_own",
    ),
    Mutation(
        "the same noise for every image",
        "diffusion/denoise.sql",
        "select requests.seed\n",
        "select 7\n",
        "each_step_has_noise_of_its_own",
    ),
    Mutation(
        "noise without its size",
        "diffusion/denoise.sql",
        "steps.sigma * coalesce",
        "coalesce",
        "each_step_has_noise_of_its_own",
    ),
    Mutation(
        "noise that is transposed",
        "engines/postgres/functions/create_functions.sql",
        "seed, step, y, x, channel)) as digest",
        "seed, step, x, y, channel)) as digest",
        "images_start_from_noise",
    ),
    Mutation(
        "sines of the noise",
        "engines/postgres/functions/create_functions.sql",
        "* cos(2 * pi() * uniform.other",
        "* sin(2 * pi() * uniform.other",
        "images_start_from_noise",
    ),
    Mutation(
        "height for width",
        "diffusion/samples.sql",
        "sample_size[1]",
        "sample_size[0]",
        "images_start_from_noise",
    ),
    Mutation(
        "images that start again",
        "diffusion/samples.sql",
        "{%- if samples %}",
        "{%- if false %}",
        "images_that_are_there_do_not_start_again",
    ),
    Mutation(
        "finished images at the frontier",
        "diffusion/samples.sql",
        "where newest.step < newest.steps or not current.has_steps",
        "",
        "the_frontier_is_the_newest_sample_of_unfinished_images",
    ),
    Mutation(
        "everyone's step is the newest one",
        "diffusion/samples.sql",
        "            where samples.image_id = requests.image_id\n",
        "",
        "the_frontier_is_the_newest_sample_of_unfinished_images",
    ),
    Mutation(
        "the picture at the frontier",
        "diffusion/samples.sql",
        "least(newest.step, newest.steps - 1) as step",
        "newest.step",
        "the_frontier_of_finished_images_is_their_last_step",
    ),
    Mutation(
        "samples that are not centered",
        "diffusion/samples.sql",
        "when {{ dbt_nn.hyperparameter(config, 'center_input_sample', 'boolean') }}",
        "when false",
        "a_network_may_read_centered_samples",
    ),
    Mutation(
        "a step from what the network has read",
        "diffusion/denoise.sql",
        "frontier.sample::real[]",
        "frontier.activation::real[]",
        "the_picture_predicted_is_clipped",
    ),
    Mutation(
        "seeds that start one too late",
        "diffusion/requests.sql",
        "else number - 1 end",
        "else number end",
        "images_of_a_batch_have_seeds_in_a_row",
    ),
    Mutation(
        "a seed of its own that is moved",
        "diffusion/requests.sql",
        "case when fields ? 'seed' then 0 else number - 1 end",
        "number - 1",
        "images_have_the_defaults_of_their_scheduler",
    ),
    Mutation(
        "the image options win over a row's",
        "diffusion/requests.sql",
        "|| requests.options || requests.fields",
        "|| requests.fields || requests.options",
        "images_have_the_defaults_of_their_scheduler",
    ),
    Mutation(
        "DDIM with DDPM's steps",
        "diffusion/requests.sql",
        "when 'ddpm' then 1000 else 50 end",
        "when 'ddpm' then 1000 else 1000 end",
        "images_have_the_defaults_of_their_scheduler",
    ),
    Mutation(
        "more steps than were trained",
        "diffusion/requests.sql",
        "1000 else 50 end, trained.steps",
        "1000 else 50 end",
        "a_run_without_options_is_one_image",
        status="error",
    ),
    Mutation(
        "a request without its seed",
        "diffusion/requests.sql",
        "num_inference_steps, eta, seed\n",
        "num_inference_steps, eta\n",
        "a_request_is_a_digest_of_all_options",
    ),
    Mutation(
        "pixels that are cut, not rounded",
        "diffusion/images.sql",
        "round(greatest(least(x / 2 + 0.5, 1), 0) * 255)",
        "trunc(greatest(least(x / 2 + 0.5, 1), 0) * 255)",
        "pixels_are_rounded_and_clamped",
    ),
    Mutation(
        "pixels that are not clamped",
        "diffusion/images.sql",
        "greatest(least(x / 2 + 0.5, 1), 0)",
        "(x / 2 + 0.5)",
        "pixels_are_rounded_and_clamped",
    ),
    Mutation(
        "a picture with a timestep",
        "diffusion/images.sql",
        "coalesce(timesteps.timestep, -1)",
        "coalesce(timesteps.timestep, 0)",
        "a_sample_has_the_timestep_of_its_noise",
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
def project(dbt: Dbt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_unit_tests(dbt, tmp_path_factory.mktemp("project"))


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
    return unit_tests("test_type:unit")


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mistake_in_a_macro_is_seen(
    project: Path,
    sound: Results,
    unit_tests: Callable[..., Results],
    mutation: Mutation,
) -> None:
    assert sound.get(mutation.test) == "pass", "without the mistake"
    file = project.parent / "macros" / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.old) >= 1, "the macro has changed: so must the mistake"
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        assert unit_tests(mutation.test).get(mutation.test) == mutation.status
    finally:
        file.write_text(text, encoding="utf-8")


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
        {"gpt2_h_3_attn_causal", "gpt2_h_3_attn_kv_blocks_complete"},
    ),
    "a value of another place": (
        "update {layers}.gpt2_h_4_attn_c_attn_v as v set activation = other.activation "
        "from {layers}.gpt2_h_4_attn_c_attn_v as other where v.position = 0 "
        "and other.position = 1 and v.sequence_id = other.sequence_id",
        {"gpt2_h_4_attn_causal", "gpt2_h_4_attn_kv_blocks_complete"},
    ),
    "a block is missing": (
        "delete from {layers}.gpt2_h_5_attn_kv_blocks",
        {"gpt2_h_5_attn_kv_blocks_complete"},
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
        {"gpt2_completions_match_tokens"},
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


@pytest.mark.long
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
