"""What a page of a text shows, from the relations of one prompt.

Each panel has one query, which is on the page as well: what it shows is what anyone
gets. Numbers are rounded, see ROUNDED, so that a page can be passed on.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extras import RealDictCursor

from dbt_nn.database import DatabaseError, connect

Row = Mapping[str, Any]

DIGITS = 3  # after the point, of logits, norms and distances
SHARE_DIGITS = 4  # of probabilities
LEVELS = 255  # of an attention weight, which is a byte
# Of attention weights: of 12 layers with 12 heads that is a text of 235 tokens.
MAX_PATTERNS = 4_000_000
ROUNDED = (
    f"Probabilities are rounded to {SHARE_DIGITS} digits after the point, logits, "
    f"bits, distances and norms to {DIGITS}, attention weights to 1/{LEVELS}."
)

# A panel's query. {relation} is the network's, as in gpt2_logit_lens.
QUERIES = {
    "tokens": """select position, token_id, piece, is_generated, next_token_id,
    next_piece
from {insight_tokens}
where prompt_id = 1
order by position""",
    "surprise": """select position, piece, is_generated, bits
from {surprise}
where prompt_id = 1
order by position""",
    "lens": """select label, position, next_token_rank, next_token_logprob,
    kl_divergence, entropy, alternatives
from {logit_lens}
where prompt_id = 1
order by position, layer, label""",
    "attention": """select layer, head, query_position, key_position, pattern
from {attention_pattern}
where prompt_id = 1
order by layer, head, query_position, key_position""",
    "scores": """select layer, head, induction_score, previous_token_score,
    duplicate_token_score, first_token_share, entropy, mean_distance
from {head_scores}
where prompt_id = 1
order by layer, head""",
    "attribution": """select position, label, layer, head, logit, logit_difference
from {logit_attribution}
where prompt_id = 1
order by position, layer, head, label""",
    "sources": """select position, source_position, logit, logit_difference
from {source_attribution}
where prompt_id = 1
order by position, source_position""",
    "norms": """select layer_name, part, position, norm
from {layer_norms}
where prompt_id = 1
order by position, layer_name""",
}
SCORES = (
    "induction_score",
    "previous_token_score",
    "duplicate_token_score",
    "first_token_share",
    "entropy",
    "mean_distance",
)


def statement(network: str, schema: str, panel: str) -> str:
    """A panel's query as it is run and shown."""
    names = {
        name: sql.Identifier(schema, f"{network}_{name}")
        for name in re.findall(r"\{(\w+)\}", QUERIES[panel])
    }
    with closing(connect()) as connection:
        return sql.SQL(QUERIES[panel]).format(**names).as_string(connection)


def read(network: str, schema: str) -> dict[str, Any]:
    """All that the page shows of the command line's prompt, without its head.

    Args:
        network: name of its folder in models/.
        schema: of its relations.

    A relation that is not there, as models of an older version have fewer, leaves its
    panel out.

    Raises:
        DatabaseError: the relation of tokens is not there, or another can't be read.

    """
    statements = {panel: statement(network, schema, panel) for panel in QUERIES}
    rows: dict[str, list[Row]] = {panel: [] for panel in QUERIES}
    with closing(connect()) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        there = existing(connection, schema)
        for panel, text in statements.items():
            [name] = re.findall(r"\{(\w+)\}", QUERIES[panel])
            if panel != "tokens" and f"{network}_{name}" not in there:
                continue
            try:
                with connection.cursor(cursor_factory=RealDictCursor) as cursor:
                    cursor.execute(text)
                    rows[panel] = cursor.fetchall()
            except psycopg2.Error as error:
                raise DatabaseError(
                    f"what looks inside {network} can't be read: "
                    f"{str(error).strip()}\nIf its models are of an older version, "
                    "write them anew by `dbt-nn generate`"
                ) from None
    return arrange(rows) | {"sql": statements}


def existing(connection: psycopg2.extensions.connection, schema: str) -> set[str]:
    """The relations of a schema, by their names."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select relname from pg_class where relnamespace = "
            "(select oid from pg_namespace where nspname = %s)",
            [schema],
        )
        return {name for (name,) in cursor}


def arrange(rows: Mapping[str, list[Row]]) -> dict[str, Any]:
    """Rows of each panel as the page has them: by place, without names.

    Raises:
        DatabaseError: there is no place.

    """
    tokens = rows["tokens"]
    if not tokens:
        raise DatabaseError("no place of the prompt is in the relations of insight")
    places = len(tokens)
    bits = {row["position"]: row["bits"] for row in rows["surprise"]}
    data: dict[str, Any] = {
        "tokens": [
            {
                "id": row["token_id"],
                "piece": row["piece"],
                "generated": row["is_generated"],
                "bits": rounded(bits.get(row["position"])),
                "nextId": row["next_token_id"],
                "next": row["next_piece"],
            }
            for row in tokens
        ],
        "rounded": ROUNDED,
        "lens": lens(rows["lens"], places),
        "attention": attention(rows["attention"], places),
        "scores": scores(rows["scores"]),
        "attribution": attribution(rows["attribution"], places),
        "sources": triangle(rows["sources"], places),
        "norms": norms(rows["norms"], places),
    }
    last = data["tokens"][-1]
    if last["next"] is not None and last["nextId"] is not None:
        last["nextBits"] = rounded(bits.get(places))
        if last["nextBits"] is None and data["lens"]:
            share = data["lens"]["logprob"][-1][-1]
            last["nextBits"] = None if share is None else rounded(-share / math.log(2))
    return data


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """A number for the page; -0.0 is 0."""
    return None if value is None else round(float(value), digits) + 0.0


# --- Panels -----------------------------------------------------------------------


def depth(label: str) -> tuple[int, int]:
    """Where a label of the logit lens is on the way: 0_pre, 0_mid, …, final_post."""
    layer, _, part = label.partition("_")
    order = ("pre", "mid", "post").index(part)
    return (int(layer) if layer.isdecimal() else 1 << 30, order)


def lens(rows: list[Row], places: int) -> dict[str, Any] | None:
    """The logit lens, each list by label and place.

    `top` has pairs of (index in pieces, probability), the likeliest first.
    """
    if not rows:
        return None
    labels = sorted({row["label"] for row in rows}, key=depth)
    number = {label: i for i, label in enumerate(labels)}
    pieces: dict[tuple[int, str], int] = {}
    columns = {
        "rank": "next_token_rank",
        "logprob": "next_token_logprob",
        "kl": "kl_divergence",
        "entropy": "entropy",
    }
    found: dict[str, Any] = {
        name: [[None] * places for _ in labels] for name in [*columns, "top"]
    }
    for row in rows:
        i, place = number[row["label"]], row["position"]
        for name, column in columns.items():
            value = row[column]
            found[name][i][place] = value if name == "rank" else rounded(value)
        top = []
        for other in row["alternatives"]:
            key = (other["token_id"], other["token"])
            index = pieces.setdefault(key, len(pieces))
            top.append([index, rounded(math.exp(other["logprob"]), SHARE_DIGITS)])
        found["top"][i][place] = top
    found["labels"] = labels
    found["pieces"] = [piece for _, piece in pieces]
    found["ids"] = [token_id for token_id, _ in pieces]
    return found


def attention(rows: list[Row], places: int) -> dict[str, Any] | None:
    """The patterns: by head, query and key up to the query, a byte each, in base64."""
    if not rows:
        return None
    heads = sorted({(row["layer"], row["head"]) for row in rows})
    size = places * (places + 1) // 2
    if size * len(heads) > MAX_PATTERNS:
        return {"heads": heads, "data": None}
    first = {head: i * size for i, head in enumerate(heads)}
    levels = bytearray(size * len(heads))
    for row in rows:
        query = row["query_position"]
        if row["key_position"] <= query:
            at = first[row["layer"], row["head"]] + query * (query + 1) // 2
            levels[at + row["key_position"]] = round(float(row["pattern"]) * LEVELS)
    return {"heads": heads, "data": base64.b64encode(levels).decode("ascii")}


def scores(rows: list[Row]) -> dict[str, Any] | None:
    """Scores of each head, by the order of the heads."""
    if not rows:
        return None
    return {
        "heads": [(row["layer"], row["head"]) for row in rows],
        **{name: [rounded(row[name]) for row in rows] for name in SCORES},
    }


def component(label: str, layer: int | None, head: int | None) -> tuple:
    """Where a component of the attribution is on the way through the network."""
    ends = {
        "embed": -2,
        "pos_embed": -1,
        "attn_bias": 1 << 30,
        "ln_final_bias": 1 << 31,
    }
    if label in ends:
        return (ends[label], 0, 0, label)
    found = re.match(r"\d+", label)
    where = layer if layer is not None else int(found[0]) if found else 1 << 29
    return (where, head is None, head or 0, label)


def attribution(rows: list[Row], places: int) -> dict[str, Any] | None:
    """What each component adds, by label and place."""
    if not rows:
        return None
    keys = {(row["label"], row["layer"], row["head"]) for row in rows}
    labels = [label for label, *_ in sorted(keys, key=lambda key: component(*key))]
    number = {label: i for i, label in enumerate(labels)}
    found = {
        name: [[None] * places for _ in labels] for name in ("logit", "difference")
    }
    for row in rows:
        i, place = number[row["label"]], row["position"]
        found["logit"][i][place] = rounded(row["logit"])
        found["difference"][i][place] = rounded(row["logit_difference"])
    return {"labels": labels, **found}


def triangle(rows: list[Row], places: int) -> dict[str, Any] | None:
    """What each place owes to which earlier one: by place and source."""
    if not rows:
        return None
    found = {
        name: [[0.0] * (place + 1) for place in range(places)]
        for name in ("logit", "difference")
    }
    for row in rows:
        place, source = row["position"], row["source_position"]
        if source <= place:
            found["logit"][place][source] = rounded(row["logit"])
            found["difference"][place][source] = rounded(row["logit_difference"])
    return found


# The order of a block's layers, by how their names end.
LAYER_ORDER = (
    r"embedding|wte|wpe",
    r"ln_1|norm1|input_layernorm",
    r"attn_c_attn_q|q_proj|query",
    r"attn_c_attn_k|k_proj|key",
    r"attn_c_attn_v|v_proj|value",
    r"attn",
    r"attn_c_proj|o_proj",
    r"ln_2|norm2|post_attention_layernorm",
    r"mlp_c_fc|gate_proj|up_proj",
    r"mlp_c_proj|down_proj",
    r"ln_f|norm",
    r"lm_head",
)


def layer_order(row: tuple[str, str]) -> tuple:
    """Where a layer is in the network, by its name and the name of its part."""
    name, part = row
    numbers = [int(number) for number in re.findall(r"\d+", part)]
    order = next(
        (
            i
            for i, pattern in reversed(list(enumerate(LAYER_ORDER)))
            if re.search(rf"(^|_)({pattern})$", name)
        ),
        len(LAYER_ORDER),
    )
    if not numbers:  # before the blocks, or after them
        return (0 if order == 0 else 2, [], order, name)
    return (1, numbers, order, name)


def norms(rows: list[Row], places: int) -> dict[str, Any] | None:
    """The norm of each layer's activation, by layer and place."""
    if not rows:
        return None
    layers = sorted({(row["layer_name"], row["part"]) for row in rows}, key=layer_order)
    number = {layer: i for i, layer in enumerate(layers)}
    values: list[list[float | None]] = [[None] * places for _ in layers]
    for row in rows:
        i = number[row["layer_name"], row["part"]]
        values[i][row["position"]] = rounded(row["norm"])
    return {"layers": layers, "values": values}
