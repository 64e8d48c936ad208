"""GPT-2 beside transformers, and beside itself at other sizes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from psycopg2 import sql
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from bench.cases import Case, Pace, Quantity, Step
from bench.project import Project
from bench.sizes import Sizes
from dbt_nn.database import PROJECT
from dbt_nn.generate import generate, write

TWIN = PROJECT / "checkpoints" / "gpt2-twin"
SAMPLE_S = 0.005  # of memory
MIB = 1 << 20


# --- Parts --------------------------------------------------------------------


def decode(sizes: Sizes) -> Iterator[Case]:
    """GPT-2 124M: a token of one sequence, at contexts of 16 and 1,000."""
    for context in sizes.contexts:
        yield Case(
            f"decode.{context}",
            f"a token, context {context:,}",
            "transformers",
            partial(tokens, 1, context),
            partial(their_tokens, 1, context),
            pace=Pace(warm=2),
        )


def half(sizes: Sizes) -> Iterator[Case]:
    """The same with half-precision weights, beside float32."""
    for context in sizes.contexts:
        yield Case(
            f"half.{context}",
            f"a token, float16 weights, context {context:,}",
            "transformers, float32",
            partial(tokens, 1, context, dtype="float16"),
            partial(their_tokens, 1, context),
            pace=Pace(warm=2),
        )


def batch(sizes: Sizes) -> Iterator[Case]:
    """GPT-2 124M: a token of 16 sequences at a context of 16, by a step of all."""
    many, context = sizes.batch, sizes.contexts[0]
    yield Case(
        "batch",
        f"a token of {many} sequences, context {context:,}",
        "transformers",
        partial(tokens, many, context),
        partial(their_tokens, many, context),
        pace=Pace(warm=2),
    )


def prefill(sizes: Sizes) -> Iterator[Case]:
    """GPT-2 124M: a prompt of 256 tokens."""
    yield Case(
        "prefill",
        f"a prompt of {sizes.prefill:,} tokens",
        "transformers",
        partial(prompt, sizes.prefill),
        partial(their_prompt, sizes.prefill),
    )


def bundled(sizes: Sizes) -> Iterator[Case]:
    """A token of the bundled network, by the number of weights, beside 124M's."""
    yield Case(
        "bundled",
        "a token by million weights, bundled network",
        "GPT-2 124M, here",
        lambda project: by_weights(project, TWIN, project.load(TWIN, "twin")),
        token_of_124m,
        pace=Pace(warm=2),
    )


def larger(sizes: Sizes) -> Iterator[Case]:
    """The same of GPT-2 355M and 774M."""
    for name, config in sizes.larger.items():
        yield Case(
            f"larger.{name}",
            f"a token by million weights, GPT-2 {name.upper()}",
            "GPT-2 124M, here",
            partial(token_of_larger, name, config),
            token_of_124m,
            pace=Pace(warm=2),
        )


def growth(sizes: Sizes) -> Iterator[Case]:
    """GPT-2 124M: how time, tables and memory grow with context and sequences."""
    low, high = sizes.contexts[0], sizes.contexts[-1]
    yield Case(
        "growth.context",
        f"context {high:,}",
        f"context {low:,}, here",
        partial(tokens, 1, high, measured=True),
        lambda project: tokens(1, low, project.second(), measured=True),
        quantities=(
            Quantity("token", "a token"),
            Quantity("tables", "tables, a token's part", "MiB"),
            Quantity("memory", "memory of a step, weights included", "MiB"),
        ),
        pace=Pace(warm=2, most=8),
    )
    yield Case(
        "growth.batch",
        f"a token of {sizes.batch} sequences, context {low:,}",
        "one sequence, here",
        partial(tokens, sizes.batch, low),
        lambda project: tokens(1, low, project.second()),
        pace=Pace(warm=2),
    )


# --- Networks -----------------------------------------------------------------


def text_network(folder: Path, **config: int) -> Path:
    """Save a GPT-2 with seeded random weights, once; its folder."""
    if not folder.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**config)).save_pretrained(folder)
    return folder


def network_124m(project: Project) -> Path:
    return text_network(project.folder / "124m", **project.sizes.text)


def opened(project: Project) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(network_124m(project)).eval()


def random_tokens(sequences: int, length: int, checkpoint: Path) -> torch.Tensor:
    vocabulary = AutoConfig.from_pretrained(checkpoint).vocab_size
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocabulary, (sequences, length), generator=generator)


# --- A token ------------------------------------------------------------------


def tokens(
    sequences: int,
    context: int,
    project: Project,
    dtype: str = "float32",
    measured: bool = False,
) -> Step:
    """A token of each sequence after prompts of that length.

    Args:
        sequences: of the batch.
        context: tokens of each prompt.
        project: that makes them.
        dtype: of the weights.
        measured: whether a step's figures are the seconds of a sequence's token, a
            token's part of the tables in MiB, and the memory of the session's
            process in MiB.

    """
    folder = network_124m(project)
    schema = project.load(folder, f"124m_{dtype}", "--dtype", dtype)
    read_prompts(project, random_tokens(sequences, context, folder), schema)
    step = project.step_of("gpt2_completion_tokens")

    def measure() -> tuple[float, float, float]:
        started = time.perf_counter()
        with highest(partial(own_memory, project)) as memory:
            step()
        seconds = time.perf_counter() - started
        count = project.value("select count(*) from {schema}.gpt2_tokens")
        return (
            seconds / sequences,
            layers_bytes(project) / count / MIB,
            memory[0] / MIB,
        )

    return Step(measure, measures=True) if measured else Step(step, units=sequences)


def their_tokens(sequences: int, context: int, project: Project) -> Step:
    """The same of transformers, with its KV cache."""
    token_ids = random_tokens(sequences, context, network_124m(project))
    return greedy_step(opened(project), token_ids)


def greedy_step(network: PreTrainedModel, token_ids: torch.Tensor) -> Step:
    """A token of each sequence by a network of transformers, after these tokens."""
    with torch.inference_mode():
        output = network(token_ids, use_cache=True)

    @torch.inference_mode()
    def step() -> None:
        nonlocal output
        output = network(
            output.logits[:, -1:].argmax(-1),
            past_key_values=output.past_key_values,
            use_cache=True,
        )

    return Step(step, units=len(token_ids))


def read_prompts(
    project: Project,
    token_ids: torch.Tensor,
    checkpoint: str,
    network: str = "gpt2",
    root: Path = PROJECT,
    **others: str,
) -> None:
    """Let dbt read prompts, and the loop go on after its first token."""
    project.execute("drop table if exists {schema}.bench_prompts")
    project.execute(
        "create table {schema}.bench_prompts "
        "(prompt_id integer, prompt_token_ids integer[])"
    )
    for row in enumerate(token_ids.tolist()):
        project.execute("insert into {schema}.bench_prompts values (%s, %s)", *row)
    variables = {
        "prompts": f"{project.schema}.bench_prompts",
        "checkpoint": checkpoint,
        "options": {"max_new_tokens": 1},
    }
    named = {f"{network}_{name}": value for name, value in variables.items()}
    project.run_dbt(network, root, **named, **others)
    # the run has met its limit of one token: raise it, and forget that
    project.execute(
        f"update {{schema}}.{network}_prompts "
        "set max_new_tokens = 1000, finished_at = null"
    )
    project.execute(
        f"update {{schema}}.{network}_completion_tokens set finish_reason = null"
    )


# --- A prompt -----------------------------------------------------------------


def prompt(length: int, project: Project) -> Step:
    """A whole prompt through every layer, in a transaction as a batch begins."""
    folder = network_124m(project)
    schema = project.load(folder, "124m_float32", "--dtype", "float32")
    read_prompts(project, random_tokens(1, length, folder), schema)
    calls = layer_calls(project, "gpt2_completion_tokens")

    def read() -> None:
        cursor = project.connection.cursor()
        cursor.execute("begin")
        for call in calls:
            cursor.execute(call)
        cursor.execute("commit")

    return Step(read)


def their_prompt(length: int, project: Project) -> Step:
    network = opened(project)
    token_ids = random_tokens(1, length, network_124m(project))

    @torch.inference_mode()
    def read() -> None:
        network(token_ids, use_cache=True)

    return Step(read)


def layer_calls(project: Project, model: str) -> list[sql.Composable]:
    """Calls of the layers' functions on the whole prompt, in a step's order."""
    source = project.value(
        "select prosrc from pg_proc where pronamespace = %s::regnamespace "
        "and proname = %s",
        project.schema,
        f"{model}_step",
    )
    lines = [line.strip() for line in source.splitlines()]
    return [
        sql.SQL(
            "select " + line.removeprefix("perform ").replace("(anew, held)", "(true)")
        )
        for line in lines
        if line.endswith('_forward"(anew, held);') and f"{model}_forward" not in line
    ]


# --- By the number of weights -------------------------------------------------


def by_weights(
    project: Project,
    folder: Path,
    schema: str,
    network: str = "gpt2",
    root: Path = PROJECT,
) -> Step:
    """A token at the first context, by million weights."""
    token_ids = random_tokens(1, project.sizes.contexts[0], folder)
    # more than the default allows for the largest
    read_prompts(project, token_ids, schema, network, root, resident_memory="8GB")
    with torch.device("meta"):
        empty = GPT2LMHeadModel(AutoConfig.from_pretrained(folder))
    step = project.step_of(f"{network}_completion_tokens")
    return Step(step, units=empty.num_parameters() / 1e6)


def token_of_124m(project: Project) -> Step:
    folder = network_124m(project)
    schema = project.load(folder, "124m_float32", "--dtype", "float32")
    return by_weights(project.second(), folder, schema)


def token_of_larger(name: str, config: dict[str, int], project: Project) -> Step:
    """Of a network whose models are generated for it."""
    network = f"gpt2_{name}"
    folder = text_network(project.folder / name, **config)
    root = project.folder / f"project_{project.schema}_{name}"
    if not root.exists():
        write_project(root, folder, network)
    return by_weights(project, folder, project.load(folder, name), network, root)


def write_project(root: Path, checkpoint: Path, network: str) -> None:
    """A copy of the project with one network, made for a checkpoint."""
    for part in ("macros", "seeds", "tests/generic"):
        shutil.copytree(PROJECT / part, root / part)
    shutil.copy(PROJECT / "dbt_project.yml", root)
    write(root / "models" / network, generate(checkpoint, network))


# --- Tables and memory --------------------------------------------------------


def layers_bytes(project: Project) -> int:
    return int(
        project.value(
            "select sum(pg_total_relation_size(oid)) from pg_class "
            "where relkind = 'r' and relnamespace = %s::regnamespace",
            f"{project.schema}_gpt2",
        )
    )


def own_memory(project: Project) -> int:
    """Bytes of the session's process, the server's shared ones apart.

    Where the process is not here to be looked at, what the session counts itself.
    """
    statm = Path(f"/proc/{project.connection.info.backend_pid}/statm")
    if statm.exists():
        _, resident, shared, *_ = map(int, statm.read_text().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    if project.connection.info.transaction_status:  # a step runs
        return 0
    return int(project.value("select sum(total_bytes) from pg_backend_memory_contexts"))


@contextmanager
def highest(figure: Callable[[], int]) -> Iterator[list[int]]:
    """Look at a figure until the block ends; the highest is in the list then."""
    found = [figure()]
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            found[0] = max(found[0], figure())
            time.sleep(SAMPLE_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found[0] = max(found[0], figure())
