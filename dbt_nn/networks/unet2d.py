"""The UNet of DDPM, as diffusers' UNet2DModel (models/unets/unet_2d.py) computes it.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models". Shapes are [image, h, w, n];
h and w are halved and n changes on the way down, and back on the way up.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dbt_nn.checkpoint.config import completed, unsupported
from dbt_nn.checkpoint.files import CheckpointError, quoted
from dbt_nn.networks.config import MAX_VECTOR, Config, whole
from dbt_nn.networks.diffusion import Attention, DiffusionNetwork
from dbt_nn.networks.graph import (
    Call,
    Layer,
    Reference,
    Source,
    Test,
    call,
    data_test,
    input_of,
    output_of,
)
from dbt_nn.networks.modules import Matrix, Norm

# The most channels of a feature map: a vector holds ten floats of each, nine of
# a 3 x 3 patch and one to spare.
MAX_CHANNELS = MAX_VECTOR // 10
MAX_IMAGE_CHANNELS = 16
# pixels on a side; the pixels of an image fit a Postgres int
MAX_SAMPLE_SIZE = 1 << 15
PATCH = f"a vector holds a 3 x 3 patch and has {MAX_VECTOR:,} dimensions at most"
SILU = "'silu'"
# Names in old checkpoints, which diffusers reads as well.
OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}

Down = Literal["DownBlock2D", "AttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D"]


class UNet2DConfig(Config):
    """UNet2DModel's arguments and their defaults, which config.json may leave out."""

    sample_size: Any = None
    in_channels: int = whole(3, most=MAX_IMAGE_CHANNELS)
    out_channels: int = whole(3, most=MAX_IMAGE_CHANNELS)
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = whole(None, most=MAX_VECTOR)
    freq_shift: float = Field(0, description="a number is")
    flip_sin_to_cos: bool = True
    down_block_types: list[Down] = Field(["DownBlock2D", *["AttnDownBlock2D"] * 3])
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: list[Up] = Field([*["AttnUpBlock2D"] * 3, "UpBlock2D"])
    block_out_channels: list[int] = Field([224, 448, 672, 896])
    # an up block has one more
    layers_per_block: int = whole(2, most=(1 << 31) - 2)
    mid_block_scale_factor: float = Field(1, ge=1, le=1, description="only 1 is")
    downsample_padding: int = Field(1, ge=0, le=1, description="0 and 1 are")
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: Any = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: int | None = whole(8)
    norm_num_groups: int = whole(32, most=MAX_CHANNELS)
    attn_norm_num_groups: int | None = whole(None, most=MAX_CHANNELS)
    norm_eps: float = Field(1e-5, gt=0, lt=1, description="a number between 0 and 1 is")
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: bool = True
    class_embed_type: Literal[None] = None
    num_class_embeds: Literal[None] = None
    num_train_timesteps: Any = None

    @field_validator("sample_size", mode="before")
    @classmethod
    def height_and_width(cls, size: Any) -> tuple[int, int]:
        sides = size if isinstance(size, list) else [size, size]
        if len(sides) != 2 or not all(
            type(side) is int and 0 < side <= MAX_SAMPLE_SIZE for side in sides
        ):
            raise CheckpointError(
                f"config.json says sample_size = {quoted(size)}, where the image's "
                "size is needed: a whole number or [height, width], up to "
                f"{MAX_SAMPLE_SIZE}. Enter the size that the network was trained with."
            )
        return (sides[0], sides[1])

    @field_validator("block_out_channels", mode="before")
    @classmethod
    def widths_fit_a_vector(cls, widths: Any) -> list[int]:
        if (
            not isinstance(widths, list)
            or not widths
            or not all(type(n) is int and 0 < n <= MAX_CHANNELS for n in widths)
        ):
            raise unsupported(
                "block_out_channels",
                widths,
                f"a list of whole numbers up to {MAX_CHANNELS:,} is: {PATCH}",
            )
        return widths

    @model_validator(mode="after")
    def levels_agree(self) -> Self:
        """Each level has one of each list, and halves the image."""
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types"):
            if len(getattr(self, key)) != levels:
                raise CheckpointError(
                    f"config.json has {len(getattr(self, key))} {key}, but {levels} "
                    "block_out_channels: each level needs one of both. Correct the "
                    "configuration."
                )
        step = 1 << (levels - 1)
        if any(side % step for side in self.sample_size):
            raise unsupported(
                "sample_size",
                [*self.sample_size],
                f"with {levels} levels it is halved {levels - 1} times, so it must be "
                f"a multiple of {step}",
            )
        return self

    @model_validator(mode="after")
    def channels_agree(self) -> Self:
        if self.out_channels != self.in_channels:
            raise unsupported(
                "out_channels",
                self.out_channels,
                f"as many as in_channels, {self.in_channels}, are",
            )
        first = self.block_out_channels[0]
        if self.freq_shift == first // 2:
            raise unsupported(
                "freq_shift",
                self.freq_shift,
                "a number other than half of the first width, by whose difference the "
                "frequencies are divided, is",
            )
        # a level joins its input and a skip connection of the level's, or of the next
        up = self.block_out_channels[::-1]
        for level, width in enumerate(up):
            around = (up[max(level - 1, 0)], width, *up[level + 1 : level + 2])
            if width + max(around) > MAX_CHANNELS:
                raise unsupported(
                    "block_out_channels",
                    self.block_out_channels,
                    f"up_blocks.{level} joins its input and a skip connection to "
                    f"{width + max(around):,} channels, of which {MAX_CHANNELS:,} are: "
                    f"{PATCH}",
                )
        return self

    @model_validator(mode="after")
    def groups_and_heads_divide_the_width(self) -> Self:
        widths, groups = self.block_out_channels, self.norm_num_groups
        # the concatenated widths are sums of these, so it divides them as well
        for width in widths:
            if width % groups:
                raise unsupported(
                    "norm_num_groups",
                    groups,
                    f"a whole number that divides every width, {width} among them, is",
                )
        if widths[-1] % (self.attn_norm_num_groups or 1):
            raise unsupported(
                "attn_norm_num_groups",
                self.attn_norm_num_groups,
                f"null or a whole number that divides the mid block's {widths[-1]} "
                "channels is",
            )
        head = self.attention_head_dim
        for path, width in self.attending().items():
            if width % (head or 1):
                raise unsupported(
                    "attention_head_dim",
                    head,
                    f"null or a number that divides the {width} channels of {path} is",
                )
        return self

    def attending(self) -> dict[str, int]:
        """The blocks with attention and their widths."""
        widths = self.block_out_channels
        found = {
            f"down_blocks.{level}": width
            for level, width in enumerate(widths)
            if self.down_block_types[level].startswith("Attn")
        }
        if self.add_attention:
            found["mid_block"] = widths[-1]
        return found | {
            f"up_blocks.{level}": width
            for level, width in enumerate(widths[::-1])
            if self.up_block_types[level].startswith("Attn")
        }


class UNet2D(DiffusionNetwork):
    """Noisy images [image, h, w, channels] and their timesteps -> their noise."""

    kind = "UNet2DModel"
    config_type = UNet2DConfig
    config: UNet2DConfig
    stem = "diffusion_pytorch_model"
    convert = "diffusers: DDPMPipeline.from_pretrained(SOURCE).save_pretrained(FOLDER)"
    shown: list[Layer]
    attentions: list[Attention]

    def forward(self) -> None:
        channels = self.config.in_channels
        widths = self.config.block_out_channels
        sample = self.begin(channels)
        t = self.timestep(sample)  # [image, n]
        x = self.conv(
            "conv_in", sample, widths[0], "First convolution, [image, h, w, n]."
        )
        self.shown, self.attentions = [x], []
        skips = [x]
        for level in range(len(widths)):
            with self.block_part(f"down_blocks.{level}", "left"):
                x = self.down_block(level, x, t, skips)  # [image, h / 2, w / 2, n]
        with self.block_part("mid_block"):
            x = self.mid_block(x, t)
        for level in range(len(widths)):
            with self.block_part(f"up_blocks.{level}", "right"):
                x = self.up_block(level, x, t, skips)  # [image, 2 h, 2 w, n]
        x = self.group_norm("conv_norm_out", x)
        x = self.conv(
            *("conv_out", x, channels),
            "The network's output: the noise that it sees in the sample, or what its "
            "prediction_type says, [image, h, w, channels].",
            width="channels",
            # before the loop: the first step
            tests=[self.matches_reference("image")],
        )
        self.end(x, [*self.shown, x], self.attentions)

    def block_part(self, path: str, side: str = "") -> AbstractContextManager[None]:
        """The part of a block, whose tag is its name."""
        return self.part(path, f"layers/{path.replace('.', '_')}", side=side)

    # The timestep: one embedding an image

    def timestep(self, sample: Layer) -> Layer:
        """[image] -> [image, n]: time_proj, TimestepEmbedding, and a ResNet's SiLU."""
        c = self.config
        first = c.block_out_channels[0]
        width = c.time_embedding_dim or 4 * first
        x = self.layer_of_image(
            "time_proj",
            call("timestep_embedding", sample, self.source("config")),
            "Sines and cosines of the timestep, [image, n].",
            output_of("time_proj", axes="bc"),
            channels=first,
        )
        x = self.linear_of_image(
            *("time_embedding.linear_1", x, width),
            "Embedding of the timestep, [image, n], after SiLU.",
            output_of("time_embedding.linear_1", axes="bc", activation="silu"),
            activation=SILU,
        )
        x = self.linear_of_image(
            *("time_embedding.linear_2", x, width),
            "Embedding of the timestep, [image, n].",
            output_of("time_embedding.linear_2", axes="bc"),
        )
        return self.layer_of_image(
            "time_embedding.silu",
            call("activation_layer", x, SILU),
            "SiLU of the embedding of the timestep, as every ResNet reads it, "
            "[image, n].",
            output_of("time_embedding.linear_2", axes="bc", activation="silu"),
            channels=width,
        )

    # Blocks

    def down_block(self, level: int, x: Layer, t: Layer, skips: list[Layer]) -> Layer:
        """DownBlock2D or AttnDownBlock2D; keeps each output as a skip connection."""
        c, path = self.config, f"down_blocks.{level}"
        for n in range(c.layers_per_block):
            x = self.resnet(f"{path}.resnets.{n}", x, t, c.block_out_channels[level])
            if c.down_block_types[level] == "AttnDownBlock2D":
                x = self.attention(f"{path}.attentions.{n}", x)
            skips.append(x)
        if level < len(c.block_out_channels) - 1:
            x = self.downsample(f"{path}.downsamplers.0.conv", x)
            skips.append(x)
        return x

    def mid_block(self, x: Layer, t: Layer) -> Layer:
        """UNetMidBlock2D."""
        x = self.resnet("mid_block.resnets.0", x, t, x.channels)
        if self.config.add_attention:
            x = self.attention("mid_block.attentions.0", x, "attn_norm_num_groups")
        return self.resnet("mid_block.resnets.1", x, t, x.channels)

    def up_block(self, level: int, x: Layer, t: Layer, skips: list[Layer]) -> Layer:
        """UpBlock2D or AttnUpBlock2D; each ResNet reads a skip connection, too."""
        c, path = self.config, f"up_blocks.{level}"
        width = c.block_out_channels[-1 - level]
        for n in range(c.layers_per_block + 1):
            x = self.concatenate(f"{path}.resnets.{n}", x, skips.pop())
            x = self.resnet(f"{path}.resnets.{n}", x, t, width)
            if c.up_block_types[level] == "AttnUpBlock2D":
                x = self.attention(f"{path}.attentions.{n}", x)
        if level < len(c.block_out_channels) - 1:
            x = self.upsample(f"{path}.upsamplers.0", x)
        return x

    # What blocks are made of

    def resnet(self, path: str, x: Layer, t: Layer, width: int) -> Layer:
        """ResnetBlock2D, [image, h, w, n_in] -> [image, h, w, width]."""
        h = self.group_norm(f"{path}.norm1", x)
        t = self.linear_of_image(
            *(f"{path}.time_emb_proj", t, width),
            "The timestep for this ResNet, [image, n].",
            output_of(f"{path}.time_emb_proj", axes="bc"),
        )
        h = self.conv(
            *(f"{path}.conv1", h, width),
            "Convolution with the timestep added, [image, h, w, n].",
            output_of(
                f"{path}.conv1", plus=output_of(f"{path}.time_emb_proj", axes="bc")
            ),
            time_embedding=t,
        )
        h = self.group_norm(f"{path}.norm2", h)
        if x.channels != width:
            x = self.conv(
                *(f"{path}.conv_shortcut", x, width),
                "The ResNet's input with as many channels as its output, "
                "[image, h, w, n].",
                side=1,
                kernel_size=1,
            )
        return self.show(
            self.conv(
                *(f"{path}.conv2", h, width),
                "The ResNet's output: a convolution added to its input, "
                "[image, h, w, n].",
                output_of(path),
                residual=x,
            )
        )

    def show(self, x: Layer) -> Layer:
        """The layer, of which the insight has pictures."""
        self.shown.append(x)
        return x

    def attention(self, path: str, x: Layer, groups: str = "norm_num_groups") -> Layer:
        """Attention of places to all places, added to its input, [image, h, w, n]."""
        normed = self.group_norm(
            f"{path}.group_norm",
            x,
            groups,
            activation=None,
            reference=output_of(f"{path}.group_norm", axes="bcp"),
        )
        q, k, v = (
            self.linear(
                *(f"{path}.to_{part}", normed),
                f"{word} of all heads, [image, h, w, n].",
                output_of(f"{path}.to_{part}", axes="bpc"),
            )
            for part, word in {"q": "Queries", "k": "Keys", "v": "Values"}.items()
        )
        self.attentions.append(Attention(path, q, k))
        head_size = self.hyperparameter("attention_head_dim")
        a = self.layer(
            path,
            call("attention", q, k, v, head_size=head_size),
            "Self-attention over the places of an image, [image, h, w, n]: the heads "
            "side by side.",
            reference=input_of(f"{path}.to_out.0", axes="bpc"),
            tests=[
                data_test(
                    "global",
                    "attends_to_all_places",
                    query=q,
                    key=k,
                    value=v,
                    hyperparameters=self.source("config"),
                )
            ],
            channels=x.channels,
            halvings=x.halvings,
        )
        return self.show(
            self.linear(
                *(f"{path}.to_out.0", a),
                "Attention's output added to its input, [image, h, w, n].",
                output_of(path),
                residual=x,
            )
        )

    def downsample(self, path: str, x: Layer) -> Layer:
        """Downsample2D, [image, h, w, n] -> [image, h / 2, w / 2, n]."""
        return self.conv(
            *(path, x, x.channels),
            "Convolution of every second place, [image, h/2, w/2, n].",
            halvings=1,
            stride=2,
            padding=self.hyperparameter("downsample_padding"),
        )

    def upsample(self, path: str, x: Layer) -> Layer:
        """Upsample2D, [image, h, w, n] -> [image, 2 h, 2 w, n]."""
        x = self.layer(
            f"{path}.interpolate",
            call("upsample_nearest", x),
            "Each place four times, [image, 2h, 2w, n].",
            reference=input_of(f"{path}.conv"),
            channels=x.channels,
            halvings=x.halvings - 1,
        )
        return self.conv(
            *(f"{path}.conv", x, x.channels),
            "Convolution at twice the size, [image, h, w, n].",
        )

    def concatenate(self, resnet: str, x: Layer, skip: Layer) -> Layer:
        """torch.cat of the channels, as the ResNet at `resnet` reads them."""
        return self.layer(
            f"{resnet}.cat",
            call("concatenate", x, skip),
            "The layer before and a skip connection from the way down, side by side, "
            "[image, h, w, n].",
            reference=input_of(resnet),
            channels=x.channels + skip.channels,
            halvings=x.halvings,
        )

    # Layers

    def conv(
        self,
        path: str,
        x: Layer,
        width_out: int,
        about: str,
        reference: Reference | None = None,
        *,
        side: int = 3,
        halvings: int = 0,
        width: str | None = None,
        tests: list[Test] | None = None,
        **more: object,
    ) -> Layer:
        """torch.nn.Conv2d, whose inputs are ordered by place: y, x, channel."""
        weights = self.tensor(
            path,
            Matrix(
                path.replace(".", "_"),
                f"{path}.weight",
                f"{path}.bias",
                (width_out, x.channels, side, side),
                (0, 2, 3, 1),
            ),
            f"Convolution {path}: weight [out, k * k * in], bias [out].",
        )
        return self.layer(
            path,
            call("conv2d", x, weights, **more),
            about,
            reference=reference or output_of(path),
            width=width,
            tests=tests,
            channels=width_out,
            halvings=x.halvings + halvings,
        )

    def linear_weights(self, path: str, x: Layer, width: int) -> Source:
        """Those of torch.nn.Linear, [width, n_in]."""
        return self.tensor(
            path,
            Matrix(
                path.replace(".", "_"),
                f"{path}.weight",
                f"{path}.bias",
                (width, x.channels),
            ),
            f"Linear layer {path}: weight [out, in], bias [out].",
        )

    def linear(
        self, path: str, x: Layer, about: str, reference: Reference, **more: object
    ) -> Layer:
        """torch.nn.Linear of each place, as many channels out as in."""
        weights = self.linear_weights(path, x, x.channels)
        return self.layer(
            path,
            call("linear", x, weights, **more),
            about,
            reference=reference,
            channels=x.channels,
            halvings=x.halvings,
        )

    def linear_of_image(
        self,
        path: str,
        x: Layer,
        width: int,
        about: str,
        reference: Reference,
        **more: object,
    ) -> Layer:
        """torch.nn.Linear of what an image has once, [image, n] -> [image, width]."""
        weights = self.linear_weights(path, x, width)
        body = call("linear", x, weights, **more)
        return self.layer_of_image(path, body, about, reference, channels=width)

    def layer_of_image(
        self,
        path: str,
        body: Call,
        about: str,
        reference: Reference,
        channels: int,
    ) -> Layer:
        """A layer of one row an image."""
        return self.layer(
            path,
            body,
            about,
            reference=reference,
            place=("image_id",),
            complete=self.image_test(),
            channels=channels,
        )

    def group_norm(
        self,
        path: str,
        x: Layer,
        groups: str = "norm_num_groups",
        activation: str | None = "silu",
        reference: Reference | None = None,
    ) -> Layer:
        """torch.nn.GroupNorm, with SiLU unless `activation` says otherwise."""
        weights = self.tensor(
            path,
            Norm(path.replace(".", "_"), f"{path}.weight", f"{path}.bias", x.channels),
            f"Group norm {path}: weight [n], bias [n].",
        )
        # attn_norm_num_groups may be null
        instead = "norm_num_groups" if groups != "norm_num_groups" else ""
        more = {"activation": f"'{activation}'"} if activation else {}
        return self.layer(
            path,
            call(
                "group_norm",
                x,
                weights,
                groups=self.hyperparameter(groups, otherwise=instead),
                epsilon=self.hyperparameter("norm_eps", "float8"),
                **more,
            ),
            f"Group normalisation{' and SiLU' if activation else ''}, "
            "[image, h, w, n].",
            reference=reference or output_of(path, activation=activation),
            tests=[
                data_test(
                    "normalized",
                    "is_group_normalized",
                    input=x,
                    weights=weights,
                    hyperparameters=self.source("config"),
                    groups=groups,
                    activation=activation,
                )
            ],
            channels=x.channels,
            halvings=x.halvings,
        )

    # Files

    @classmethod
    def matches(cls, content: dict[str, Any]) -> bool:
        return content.get("_class_name") == "UNet2DModel"

    @classmethod
    def complete(cls, content: dict[str, Any]) -> dict[str, Any]:
        return completed(content, UNet2DConfig.defaults())

    @classmethod
    def canonical(cls, name: str) -> str | None:
        old = re.fullmatch(
            rf"(.+\.attentions\.[0-9]+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)",
            name,
        )
        if old:
            return f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
        # a second name of `conv` in old checkpoints, which diffusers ignores
        if re.fullmatch(r".+\.(down|up)samplers\.0\.Conv2d_0\.(weight|bias)", name):
            return None
        return name
