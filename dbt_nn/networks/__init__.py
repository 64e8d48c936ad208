"""The kinds of networks: a page each, in NETWORKS."""

from __future__ import annotations

from typing import Any

from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.networks.bert import Bert, Roberta, XLMRoberta
from dbt_nn.networks.distilbert import DistilBert
from dbt_nn.networks.gpt2 import GPT2
from dbt_nn.networks.graph import Network
from dbt_nn.networks.llama import Llama, Mistral, Qwen2, Qwen3
from dbt_nn.networks.unet2d import UNet2D

NETWORKS: list[type[Network]] = [
    GPT2,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    UNet2D,
    Bert,
    DistilBert,
    Roberta,
    XLMRoberta,
]


def network_of(content: dict[str, Any]) -> type[Network]:
    """Find the kind of network that a config.json belongs to.

    Raises:
        CheckpointError: none of NETWORKS.

    """
    for network in NETWORKS:
        if network.matches(content):
            return network
    kind = content.get("model_type", content.get("_class_name"))
    raise CheckpointError(
        f"config.json says that the network is of type {quoted(kind)}, which is not "
        "supported. Choose one of: "
        f"{', '.join(network.kind for network in NETWORKS)}."
    )
