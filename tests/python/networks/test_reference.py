"""`make check`: layers against the reference activations in the checkpoints."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from safetensors import safe_open

from conftest import Dbt, OwnServer, run_script
from dbt_nn.check import Network
from runs import PROJECT, TWIN, copy_project

UNET_TWIN = PROJECT / "checkpoints" / "ddpm-twin"
NETWORKS = [f"gpt2={TWIN}", f"ddpm={UNET_TWIN}"]
SCHEMA = "test_reference"  # of the user, whose results the check must not touch
CHECK = f"{SCHEMA}_check"


def contents(connection: psycopg2.extensions.connection) -> dict[str, str]:
    """Every relation and function of the user's schemas, with a digest."""
    found = {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select format('%%I.%%I', nspname, relname), relkind, relfilenode
            from pg_class
            inner join pg_namespace as schema on schema.oid = relnamespace
            where nspname like %s and not starts_with(nspname, %s)
            """,
            [f"{SCHEMA}%", CHECK],
        )
        for name, kind, file in cursor.fetchall():
            found[name] = str(file)
            if kind in "rv":
                cursor.execute(
                    f"select md5(string_agg(t::text, '' order by t::text)) "
                    f"from {name} as t"
                )
                found[name] += f" {cursor.fetchone()[0]}"
        cursor.execute(
            """
            select oid::regprocedure::text, md5(prosrc), xmin::text from pg_proc
            where starts_with(oid::regprocedure::text, %s || '.')
            """,
            [SCHEMA],
        )
        for name, *rest in cursor.fetchall():
            found[name] = " ".join(rest)
    return found


def check(
    *arguments: str, folder: Path = PROJECT, schema: str = SCHEMA, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run scripts/check.py, of a folder that may be a changed copy."""
    return subprocess.run(
        [sys.executable, str(folder / "scripts" / "check.py"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DBT_NN_SCHEMA": schema, **env},
        check=False,
        timeout=600,
    )


def reports(output: str) -> dict[str, list[dict[str, str]]]:
    """What print_failures() printed: the rows of each test that failed."""
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.split(r"\n(?=\w+: \d+ failed\n)", output)[1:]:
        name, rows = block.split(": ", 1)
        rows = rows.partition("\n")[2]
        found[name] = [
            dict(re.findall(r"^  (\w+) +(.*)$", row, re.MULTILINE))
            for row in re.split(r"^(?=  layer )", rows, flags=re.MULTILINE)[1:]
        ]
    return found


@pytest.fixture(scope="module")
def check_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def checked(
    dbt: Dbt, connection: psycopg2.extensions.connection, check_target: str
) -> Iterator[tuple[subprocess.CompletedProcess[str], dict, dict]]:
    """A user's results, then a check: its output, and these before and after."""
    done = run_script("load_checkpoint.py", str(TWIN), "--name", "gpt2_twin")
    assert done.returncode == 0, done.stdout + done.stderr
    user = {"DBT_NN_SCHEMA": SCHEMA}
    dbt("seed", "--select", "dbt_nn_prompts", env=user)
    options = json.dumps({"gpt2_options": {"max_new_tokens": 2}})
    dbt("run", "--select", "gpt2", "--vars", options, env=user)
    before = contents(connection)
    done = check(*NETWORKS, DBT_TARGET_PATH=check_target)
    yield done, before, contents(connection)
    with connection.cursor() as cursor:
        for schema in ("", "_gpt2", "_check", "_check_gpt2", "_check_ddpm"):
            cursor.execute(f"drop schema if exists {SCHEMA}{schema} cascade")


@pytest.fixture
def test_again(
    dbt: Dbt,
    checked: tuple[subprocess.CompletedProcess[str], dict, dict],
    check_target: str,
) -> Callable[[], dict[str, list[dict[str, str]]]]:
    """Give a function that tests again what the check has built: its reports."""
    assert checked[0].returncode == 0, checked[0].stdout
    variables: dict = {}
    for text in NETWORKS:
        name, _, folder = text.partition("=")
        variables |= Network(name, Path(folder)).variables(CHECK)
    arguments = ["--select", "tag:reference", "--vars", json.dumps(variables)]

    def test() -> dict[str, list[dict[str, str]]]:
        environment = {"DBT_NN_SCHEMA": CHECK, "DBT_TARGET_PATH": check_target}
        done = dbt("test", *arguments, env=environment, check=False)
        assert " of 3 " in done.stdout, done.stdout
        assert " SKIP=0 " in done.stdout, done.stdout
        return reports(done.stdout)

    return test


def test_layers_agree(
    checked: tuple[subprocess.CompletedProcess[str], dict, dict],
) -> None:
    """All that have a reference: as many as there are files."""
    done, _, _ = checked
    assert done.returncode == 0, done.stdout
    for network in ("gpt2", "ddpm"):
        layers = [
            path
            for path in (PROJECT / "models" / network / "layers").rglob("*.sql")
            if not path.stem.endswith("_kv_blocks")  # they repeat two others
        ]
        assert f"{network}: {len(layers)} layers agree with" in done.stdout


def test_results_are_untouched(
    checked: tuple[subprocess.CompletedProcess[str], dict, dict],
) -> None:
    _, before, after = checked
    assert f"{SCHEMA}_gpt2.gpt2_lm_head" in before
    assert any(name.endswith(")") for name in before)
    assert after == before


def test_damaged_layers_are_named(
    connection: psycopg2.extensions.connection,
    test_again: Callable[[], dict[str, list[dict[str, str]]]],
) -> None:
    """The first in the DAG's order, with the place, the difference and values."""
    kept = {}
    place = "sequence_id = 2 and position = 4"
    with connection.cursor() as cursor:
        # a late layer and an early one: one channel by 1e-4 of the largest value
        for name in ("h_9_ln_2", "h_3_mlp_c_fc"):
            layer = f"{CHECK}_gpt2.gpt2_{name}"
            cursor.execute(f"select activation::text from {layer} where {place}")
            ((kept[layer],),) = cursor.fetchall()
            cursor.execute(
                f"""
                update {layer} set activation = (
                    select array_agg(
                        x + case i when 18 then 1e-4 * largest else 0 end order by i
                    )::vector
                    from unnest(activation::real[]) with ordinality as e (x, i)
                )
                from (
                    select max(abs(x)) as largest
                    from {layer} as t, unnest(t.activation::real[]) as x
                ) as all_of_it
                where {place}
                """
            )
        removed = f"{CHECK}_ddpm.ddpm_mid_block_attentions_0_to_k"
        cursor.execute(
            f"""
            delete from {removed} as layer using (
                select place from {CHECK}.ddpm_reference
                where layer = 'mid_block_attentions_0_to_k' and place[1] = 1
                order by place desc limit 1
            ) as reference
            where array[1, image_id, y, x] = place
            returning image_id, y, x, activation::text
            """
        )
        (row,) = cursor.fetchall()
        try:
            found = test_again()
        finally:
            for layer, activation in kept.items():
                cursor.execute(
                    f"update {layer} set activation = %s::vector where {place}",
                    [activation],
                )
            cursor.execute(
                f"insert into {removed} values (%s, %s, %s, %s::vector)", row
            )

    first, second = found["gpt2_completion_tokens_reference"]
    assert first["layer"] == "gpt2_h_3_mlp_c_fc"
    assert second["layer"] == "gpt2_h_9_ln_2"
    for problem in (first, second):
        assert problem["problem"] == "differs"
        assert problem["place"] == "sequence_id 2, position 4, channel 17"
        difference = float(problem["largest_difference"])
        # the reference's places need not have the largest value
        assert float(problem["relative_difference"]) == pytest.approx(1e-4, rel=0.5)
        ours, theirs = json.loads(problem["ours"]), json.loads(problem["reference"])
        assert len(ours) == len(theirs) == 5
        assert ours[2] - theirs[2] == pytest.approx(difference, rel=0.1)
        assert ours[3:] == pytest.approx(theirs[3:], abs=difference / 10)
    for test in ("ddpm_conv_out_reference", "ddpm_images_reference"):
        (problem,) = found[test]
        assert problem["layer"] == "ddpm_mid_block_attentions_0_to_k"
        assert problem["problem"] == "has no row there"
        image, y, x, _ = row
        where = f"step 1, image_id {image}, y {y}, x {x}, "
        assert problem["place"].startswith(where)


def test_every_layer_has_a_reference(
    connection: psycopg2.extensions.connection,
    test_again: Callable[[], dict[str, list[dict[str, str]]]],
) -> None:
    """A layer that the file forgot, and one that no model makes, are failures."""
    rename = f"update {CHECK}.gpt2_reference set layer = %s where layer = %s"
    with connection.cursor() as cursor:
        cursor.execute(rename, ["h_99_ln_1", "h_2_ln_1"])
        try:
            found = test_again()
        finally:
            cursor.execute(rename, ["h_2_ln_1", "h_99_ln_1"])
    assert [*found] == ["gpt2_completion_tokens_reference"]
    unknown, missing = found["gpt2_completion_tokens_reference"]
    assert unknown["layer"] == "gpt2_h_99_ln_1"
    assert unknown["problem"] == "is no layer of the network"
    assert missing["layer"] == "gpt2_h_2_ln_1"
    assert missing["problem"] == "has no reference"


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "old", "new", "network", "layer"),
    [
        (
            "engines/postgres/fast/gelu",
            "'0.687258276'",
            "'0.6873'",
            "gpt2",
            "h_0_mlp_c_fc",
        ),
        (
            "engines/postgres/fast/attention",
            "'0.5 / sqrt(first.n / first.heads)'",
            "'0.5 / (first.n / first.heads)'",
            "gpt2",
            "h_0_attn",
        ),
        (
            "engines/postgres/fast/group_norm",
            "'1 / sqrt(' ~ dbt_nn.group_mean",
            "'1 / sqrt(1.001 * ' ~ dbt_nn.group_mean",
            "ddpm",
            "down_blocks_0_resnets_0_norm1",
        ),
        (
            "kernels/resample",
            "x.activation || skip.activation",
            "skip.activation || x.activation",
            "ddpm",
            "up_blocks_0_resnets_0_cat",
        ),
    ],
    ids=["gelu", "scale", "variance", "skip"],
)
def test_mistake_in_a_kernel_is_named(
    connection: psycopg2.extensions.connection,
    tmp_path: Path,
    file: str,
    old: str,
    new: str,
    network: str,
    layer: str,
) -> None:
    """The first layer that is off is the first that has the mistake."""
    folder = copy_project(tmp_path / "project")
    macro = folder / "macros" / f"{file}.sql"
    text = macro.read_text(encoding="utf-8")
    assert old in text
    macro.write_text(text.replace(old, new), encoding="utf-8")
    schema = f"test_mistake_{os.getpid()}"
    chosen = NETWORKS[["gpt2", "ddpm"].index(network)]
    try:
        done = check(
            chosen,
            folder=folder,
            schema=schema,
            DBT_TARGET_PATH=str(tmp_path / "target"),
        )
    finally:
        with connection.cursor() as cursor:
            for name in ("_check", f"_check_{network}"):
                cursor.execute(f"drop schema if exists {schema}{name} cascade")
    assert done.returncode == 1, done.stdout
    (rows,) = (
        rows
        for test, rows in reports(done.stdout).items()
        if test.endswith("reference")
    )
    assert rows[0]["layer"] == f"{network}_{layer}", done.stdout
    assert rows[0]["problem"] == "differs"


@pytest.mark.long
def test_own_server(dbt: Dbt, own_server: OwnServer) -> None:
    """PostgreSQL 16, where we are no superuser, with the command that is printed."""
    done = check(*NETWORKS, "--load", **own_server.environment)
    assert done.returncode == 0, done.stdout
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:3] == [f"DBT_NN_SCHEMA={CHECK}", "dbt", "build"]
    done = dbt(*words[2:], env={**own_server.environment, "DBT_NN_SCHEMA": CHECK})
    assert len(re.findall(r"PASS \w+_reference ", done.stdout)) == 3, done.stdout


@pytest.mark.long
@pytest.mark.parametrize("folder", [TWIN, UNET_TWIN], ids=["gpt2", "ddpm"])
def test_file_is_what_the_libraries_compute(folder: Path) -> None:
    """As scripts/make_reference.py writes it, within roundings to float32."""
    import torch

    from training.make_reference import REFERENCE, make

    torch.set_num_threads(1)
    tensors, metadata = make(folder)
    with safe_open(folder / REFERENCE, "pt") as file:
        assert set(file.keys()) == set(tensors)
        for name, expected in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == expected.dtype
            if name.endswith(":places"):
                assert torch.equal(found, expected), name
            else:
                largest = float(expected.abs().max())
                # diffusers computes some of it in float32 even so, and processors
                # differ in the last bits: by 2e-7 on an Intel and an AMD
                assert float((found - expected).abs().max()) <= 1e-6 * largest, name
        for part in ("inputs", "files"):
            assert json.loads(file.metadata()[part]) == json.loads(metadata[part])


def test_reference_of_other_weights_is_refused(tmp_path: Path) -> None:
    """A checkpoint that was trained on has to get its reference made anew."""
    folder = tmp_path / "gpt2-twin"
    shutil.copytree(TWIN, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"n_head": 4', '"n_head": 8'))
    done = check(f"gpt2={folder}", "--load")
    assert done.returncode == 1
    assert f"{config} is not the one that reference.safetensors" in done.stdout
    assert f"make_reference.py {folder}" in done.stdout
    (folder / "reference.safetensors").unlink()
    done = check(f"gpt2={folder}", "--load")
    assert done.returncode == 1
    assert "reference.safetensors can't be read" in done.stdout
    assert "Traceback" not in done.stdout


def test_other_schemas_are_left_alone(
    connection: psycopg2.extensions.connection,
) -> None:
    """A schema that happens to have the name of the check's is not dropped."""
    with connection.cursor() as cursor:
        cursor.execute("create schema test_taken_check create table precious ()")
        try:
            done = check(f"gpt2={TWIN}", "--load", schema="test_taken")
            assert done.returncode == 1
            assert "schema test_taken_check is there" in done.stdout
            cursor.execute("select count(*) from test_taken_check.precious")
        finally:
            cursor.execute("drop schema test_taken_check cascade")


def test_profile_without_the_variable(
    server: object, tmp_path: Path, isolated_environment: Path
) -> None:
    """A profile that pins its schema would let the check overwrite results."""
    profile = (isolated_environment / "profiles" / "profiles.yml").read_text()
    pinned, changes = re.subn(r"schema: .*env_var.*", "schema: mine", profile)
    assert changes
    (tmp_path / "profiles.yml").write_text(pinned)
    done = check(f"gpt2={TWIN}", "--load", DBT_PROFILES_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "does not take its schema from DBT_NN_SCHEMA" in done.stdout
