"""What all networks over tokens share: places, tables of the tokenizer, modules."""

from __future__ import annotations

from typing import ClassVar

from dbt_nn.networks.graph import (
    Layer,
    Network,
    Reference,
    Source,
    Test,
    call,
    column,
    data_test,
    output_of,
)
from dbt_nn.networks.modules import Matrix, Norm

TOKEN_ID = column(
    "token_id", "integer", "The token, as in the checkpoint's vocabulary."
)
VOCABULARY_COLUMNS = [
    column("token_id", "integer", "The token, from 0."),
    column("token", "bytea", "Its bytes."),
    column("special", "boolean", "Whether it stands for something else than text."),
]
MERGE_COLUMNS = [
    column("left_id", "integer", "The first token of the pair."),
    column("right_id", "integer", "The second one."),
    column("rank", "integer", "The pair of the lowest rank is merged first."),
    column("token_id", "integer", "The token that takes their place."),
]


class SequenceNetwork(Network):
    """A network over the positions of texts.

    Attributes of a kind:
        prefix: of its modules' paths in the library's network.

    """

    place = ("sequence_id", "position")
    axes = "bpc"
    prefix: ClassVar[str] = ""

    def completeness(self, _: int) -> Test:
        return data_test(
            "complete", "activations_are_complete", places=self.ref("tokens")
        )

    def module(self, path: str) -> str:
        """A module's path in the library's network."""
        return f"{self.prefix}{path}"

    def linear(
        self,
        path: str,
        x: Layer,
        n_in: str,
        n_out: str,
        about: str,
        reference: Reference,
        *,
        axes: tuple[int, int] = (0, 1),
        has_bias: bool = True,
        **more: object,
    ) -> Layer:
        """torch.nn.Linear, [places, n_in] -> [places, n_out].

        Args:
            path: of the module.
            x: what it reads.
            n_in: how many numbers it reads, by their name in the configuration.
            n_out: how many it gives, likewise.
            about: what it computes.
            reference: whose activations it is compared with.
            axes: (0, 1) for a weight of [out, in], (1, 0) for [in, out].
            has_bias: whether it has one.
            more: arguments of the kernel.

        """
        weights = self.linear_weights(path, n_in, n_out, axes, has_bias=has_bias)
        return self.layer(
            path,
            call("linear", x, weights, **more),
            f"{about}, [places, {n_out}].",
            reference=reference,
            width=n_out,
        )

    def linear_weights(
        self,
        path: str,
        n_in: str,
        n_out: str,
        axes: tuple[int, int] = (0, 1),
        *,
        has_bias: bool = True,
    ) -> Source:
        """The weights of torch.nn.Linear; the arguments are those of `linear`."""
        sizes = (self.config.size(n_out), self.config.size(n_in))
        return self.tensor(
            path,
            Matrix(
                self.source(path).table,
                f"{path}.weight",
                f"{path}.bias" if has_bias else None,
                (sizes[axes[0]], sizes[axes[1]]),
                axes,
            ),
            f"Linear layer {path}: weight [{n_out}, {n_in}]"
            + (f", bias [{n_out}]." if has_bias else "."),
        )

    def rms_norm(self, path: str, x: Layer) -> Layer:
        """torch.nn.RMSNorm, [places, width] -> the same."""
        weights = self.rms_norm_weights(path, self.width)
        epsilon = self.hyperparameter("rms_norm_eps", "float8")
        return self.layer(
            path,
            call("rms_norm", x, weights, epsilon),
            f"Root mean square normalisation, [places, {self.width}].",
            reference=output_of(self.module(path)),
            tests=[
                data_test(
                    "normalized",
                    "is_rms_normalized",
                    input=x,
                    weights=weights,
                    hyperparameters=self.source("config"),
                )
            ],
        )

    def rms_norm_weights(self, path: str, width: str) -> Source:
        """The weights of torch.nn.RMSNorm."""
        return self.tensor(
            path,
            Norm(
                self.source(path).table,
                f"{path}.weight",
                None,
                self.config.size(width),
            ),
            f"RMS norm {path}: weight [{width}].",
        )

    def layer_norm(self, path: str, x: Layer) -> Layer:
        """torch.nn.LayerNorm, [places, width] -> the same."""
        weights = self.tensor(
            path,
            Norm(
                self.source(path).table,
                f"{path}.weight",
                f"{path}.bias",
                self.config.size(self.width),
            ),
            f"Layer norm {path}: weight [{self.width}], bias [{self.width}].",
        )
        epsilon = self.hyperparameter("layer_norm_epsilon", "float8")
        return self.layer(
            path,
            call("layer_norm", x, weights, epsilon=epsilon),
            f"Layer normalisation, [places, {self.width}].",
            reference=output_of(self.module(path)),
            tests=[
                data_test(
                    "normalized",
                    "is_normalized",
                    input=x,
                    weights=weights,
                    hyperparameters=self.source("config"),
                )
            ],
        )
