"""The two ends of every image network: from requests to noise, and to pictures.

    requests -> timesteps -> samples -> frontier -> the layers -> denoised -> images

`begin` names what comes before the layers and gives the frontier: the samples that
the network denoises now. `end` names what comes after them, with the loop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from dbt_nn.networks.graph import (
    COLUMN,
    IMAGE_ID,
    PARAMETER_COLUMNS,
    ROW,
    Layer,
    Network,
    Source,
    Test,
    call,
    column,
    data_test,
    hook,
    jinja_list,
)


class Attention(NamedTuple):
    """An attention: its queries and keys, [image, h, w, n]."""

    path: str
    query: Layer
    key: Layer


class DiffusionNetwork(Network):
    """A network that reads noisy images and gives their noise."""

    macros = "diffusion"
    place = ("image_id", "y", "x")
    width = "n"
    history = "replace"
    axes = "bcyx"
    loop = ("denoised", "samples")
    is_scheduled = True

    def completeness(self, halvings: int) -> Test:
        return self.image_test(halvings=halvings)

    def image_test(self, **arguments: object) -> Test:
        """The test that a layer has a row for each image, or for each of its places."""
        return data_test(
            "complete",
            "images_are_complete",
            denoised=self.ref("denoised"),
            **arguments,
        )

    def begin(self, channels: int) -> Layer:
        """Requests, noise schedule, samples; the frontier, [image, h, w, channels]."""
        config = self.table(
            "config", "Hyper-parameters, of config.json.", PARAMETER_COLUMNS
        )
        scheduler = self.table(
            "scheduler",
            "The noise schedule, of scheduler_config.json.",
            PARAMETER_COLUMNS,
        )
        with self.part("input", side="left"):
            requests = add_requests(self, scheduler, config)
            timesteps = add_timesteps(self, requests, scheduler)
            samples = add_samples(self, requests, timesteps, config)
            frontier = add_frontier(self, samples, requests, timesteps, config)
        return replace(frontier, channels=channels)

    def end(
        self, output: Layer, shown: list[Layer], attentions: list[Attention]
    ) -> None:
        """The loop with its samples, the images, and what looks inside the network.

        Args:
            output: what the network makes of a sample, [image, h, w, channels].
            shown: layers that are shown as pictures.
            attentions: those whose weights are shown.

        """
        with self.part("output", side="right"):
            denoised = add_denoised(self, output)
            add_images(self, denoised)
        with self.insight():
            add_insight(self, denoised, shown, attentions)
        inputs = ("samples", "requests", "timesteps", "config")
        self.add_sessions(
            call("diffusion_frontier", *(self.ref(path) for path in inputs)), [output]
        )


def add_requests(net: Network, scheduler: Source, config: Source) -> Layer:
    """The images that are asked for, [images]."""
    checkpoint = net.var("checkpoint", f"'{net.name}'")
    return net.model(
        "requests",
        call(
            "diffusion_requests",
            f"dbt_nn.user_relation({net.var('requests', 'none')})",
            net.var("options", "{}"),
            scheduler,
            config,
            checkpoint,
        ),
        "The images of the run with their options, one row an image. A column of "
        "the requests relation that is named like an option overrides the var "
        f"{net.name}_options for its row.",
        {
            "materialized": "table",
            "meta": {"network": net.name},
            "pre_hook": hook(f"dbt_nn.check_checkpoint({checkpoint}, '{net.name}')"),
        },
        columns=REQUEST_COLUMNS,
    )


def add_timesteps(net: Network, requests: Layer, scheduler: Source) -> Layer:
    """The noise schedule, and the steps of each image."""
    schedule = net.model(
        "noise_schedule",
        call("diffusion_noise_schedule", scheduler),
        "The noise that the network was trained with, one row a timestep.",
        {"materialized": "table", "meta": {"network": net.name}},
        columns=NOISE_SCHEDULE_COLUMNS,
        tests=[data_test("monotone", "noise_grows_with_the_timestep")],
    )
    return net.model(
        "timesteps",
        call("diffusion_timesteps", requests, schedule, scheduler),
        "The steps of each image from noise to picture, and what each step mixes.",
        {
            "materialized": "table",
            "meta": {"network": net.name},
            "post_hook": hook(
                "'alter table ' ~ this ~ ' add primary key (image_id, step)'"
            ),
        },
        columns=TIMESTEP_COLUMNS,
    )


def add_samples(
    net: Network, requests: Layer, timesteps: Layer, config: Source
) -> Layer:
    """The samples of all steps, [images, steps, h, w, channels]."""
    return net.model(
        "samples",
        call(
            "diffusion_samples", requests, config, samples="dbt_nn.earlier_rows(this)"
        ),
        "Every sample of every image, [steps, h, w]: step 0 is the noise that it "
        "starts from, and the loop appends the others. Incremental: an image with "
        "the same request (seed, steps, checkpoint) goes on where it is, or is "
        "done; --full-refresh draws it again.",
        {
            "materialized": "incremental",
            "meta": {"network": net.name},
            "pre_hook": hook(
                f"dbt_nn.forget_other_images(this, {requests}) "
                "if is_incremental() else ''"
            ),
            "on_schema_change": "append_new_columns",
            "indexes": [{"columns": ["image_id", "step", "y", "x"], "unique": True}],
        },
        note=f"after {{{{ {timesteps} }}}}, which checks the number of steps",
        columns=SAMPLE_COLUMNS,
    )


def add_frontier(
    net: Network, samples: Layer, requests: Layer, timesteps: Layer, config: Source
) -> Layer:
    """The newest samples, [image, h, w, channels]."""
    copied = net.model(
        "config",
        f"select parameter, value\nfrom {{{{ {config} }}}}\n",
        "The network's hyper-parameters, a copy for the frontier: a view that reads "
        "the checkpoint would keep it from being loaded anew.",
        {"materialized": "table", "meta": {"network": net.name}},
        columns=PARAMETER_COLUMNS,
    )
    return net.model(
        "frontier",
        call("diffusion_frontier", samples, requests, timesteps, copied),
        "The samples that the network denoises now: each image's newest step.",
        {"materialized": "view", "meta": {"network": net.name}},
        columns=FRONTIER_COLUMNS,
    )


def add_denoised(net: Network, output: Layer) -> Layer:
    """The samples, a step less noisy; the model that owns the loop."""
    return net.model(
        "denoised",
        call(
            "diffusion_denoise",
            output,
            net.ref("frontier"),
            net.ref("requests"),
            net.ref("timesteps"),
            net.source("scheduler"),
        ),
        "The newest sample of each image, a step less noisy, and the picture that "
        "the network predicts from there. This model owns the loop.",
        {"materialized": "generation", "meta": net.meta()},
        columns=DENOISED_COLUMNS,
    )


def add_images(net: Network, denoised: Layer) -> None:
    """The images at all steps, as numbers and as pixels."""
    images = net.model(
        "images",
        call("diffusion_images", net.ref("samples"), net.ref("timesteps"), denoised),
        "Every image at every step, from noise to picture; numbers around -1..1.",
        {"materialized": "view", "meta": {"network": net.name}},
        columns=IMAGE_COLUMNS,
        tests=[
            # after the loop: the last step, and what came of all
            net.matches_reference(
                "image",
                outcome={
                    "layer": "images",
                    "place": ["image_id", "step", "y", "x"],
                    "value": "channels::real[]",
                },
            )
        ],
    )
    net.model(
        "pixels",
        call("diffusion_pixels", images),
        "The pixels of every image at every step, in 0..255.",
        {"materialized": "view", "meta": {"network": net.name}},
        columns=PIXEL_COLUMNS,
        tests=[
            data_test(
                "complete", "every_step_has_its_pixels", requests=net.ref("requests")
            )
        ],
    )


def add_insight(
    net: Network, denoised: Layer, shown: list[Layer], attentions: list[Attention]
) -> None:
    """Relations that show how an image comes out of the noise; after the loop."""
    options = net.var("insight", "{}")
    after = f"after {{{{ {denoised} }}}}, whose loop makes the steps"
    config = {"materialized": "table", "meta": {"network": net.name}}

    net.model(
        "predictions",
        call("predicted_images", net.ref("samples"), net.ref("timesteps"), options),
        "The picture that the network sees in each sample, were all the noise that it "
        "predicts taken away at once: diffusers' pred_original_sample.",
        config,
        note=after,
        columns=PREDICTION_COLUMNS,
    )
    net.model(
        "activation_components",
        call(
            "activation_components",
            jinja_list(shown),
            options,
        ),
        "What the layers see at the newest step, as pictures: the first three "
        "principal components of a layer's activations over the places of an image.",
        config,
        note=after,
        columns=COMPONENT_COLUMNS,
    )
    if attentions:
        net.model(
            "place_attention",
            call(
                "place_attention",
                jinja_list(
                    f"('{net.model_name(path)}', {query}, {key})"
                    for path, query, key in attentions
                ),
                net.ref("frontier"),
                net.hyperparameter("attention_head_dim"),
                options,
            ),
            "Where a place of an image looks at the newest step: its attention weights "
            "in each layer and head, of the middle of the image or of the var's place.",
            config,
            note=after,
            columns=PLACE_ATTENTION_COLUMNS,
            tests=[data_test("adds_up", "patterns_add_up", places=PLACE_OF_PATTERN)],
        )


# --- Columns ------------------------------------------------------------------

REQUEST_COLUMNS = [
    column(
        "image_id",
        "integer",
        "Names the image: 1, 2, … or as in the requests relation.",
    ),
    column("scheduler", "text", "ddpm or ddim."),
    column("num_inference_steps", "integer", "From noise to picture."),
    column(
        "eta", "double precision", "How much new noise a DDIM step adds: 0 none, 1 all."
    ),
    column("seed", "bigint", "Same seed and options: same image."),
    column("request", "uuid", "A digest of all that decides the image."),
    column("error", "text", "Why it cannot be drawn; NULL where it can."),
    column("batch", "integer", "The batch that it is in; they run one by one."),
]
NOISE_SCHEDULE_COLUMNS = [
    column("timestep", "integer", "0 is the least noise."),
    column("beta", "double precision", "Variance that the timestep adds."),
    column(
        "alpha_cumprod",
        "double precision",
        "Share of the picture that is left, in variance.",
    ),
]
TIMESTEP_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "0, 1, … in the order of denoising."),
    column("timestep", "integer", "Of the sample that the step denoises."),
    column("previous_timestep", "integer", "Of the outcome; -1 is the picture."),
    column("alpha_cumprod", "double precision", "At the timestep."),
    column("previous_alpha_cumprod", "double precision", "At the previous timestep."),
    column("original_weight", "double precision", "Of the picture predicted."),
    column("sample_weight", "double precision", "Of the sample."),
    column("epsilon_weight", "double precision", "Of the noise predicted."),
    column("sigma", "double precision", "Standard deviation of new noise."),
]
SAMPLE_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "Steps done; 0 is pure noise."),
    ROW,
    COLUMN,
    column("activation", "vector", "Its channels."),
    column("request", "uuid", "As in the requests."),
    column(
        "pred_original_sample",
        "vector",
        "The channels of the picture that the network predicted from the sample "
        "before; NULL at step 0.",
    ),
]
FRONTIER_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "Steps done; 0 is pure noise."),
    column("timestep", "integer", "Of the sample's noise, as the network is told."),
    ROW,
    COLUMN,
    column(
        "activation",
        "vector",
        "What the network reads: the sample's channels, scaled if its config says so.",
    ),
    column("sample", "vector", "The sample's channels, around -1..1."),
]
DENOISED_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "Steps done."),
    ROW,
    COLUMN,
    column("activation", "vector", "The channels of the sample, less noisy."),
    column("pred_original_sample", "vector", "The channels of the picture predicted."),
]
IMAGE_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "Steps done; 0 is pure noise."),
    column("timestep", "integer", "Of the sample's noise; -1 is the picture."),
    ROW,
    COLUMN,
    column("channels", "vector", "Red, green and blue, or as the network has them."),
]
PIXEL_COLUMNS = [
    *IMAGE_COLUMNS[:-1],
    column("pixel", "smallint[]", "Red, green and blue in 0..255."),
]
PREDICTION_COLUMNS = [
    IMAGE_ID,
    column("step", "integer", "Of the sample that it is predicted from."),
    column("timestep", "integer", "Of that sample's noise."),
    ROW,
    COLUMN,
    column("channels", "vector", "As the images have them, around -1..1."),
]
LAYER_NAME = column("layer_name", "text", "The layer's model.")
COMPONENT_COLUMNS = [
    LAYER_NAME,
    IMAGE_ID,
    column("component", "integer", "1, 2, 3, from that of the largest variance."),
    ROW,
    COLUMN,
    column("value", "real", "Of the place; the mean over the places is 0."),
    column("explained", "real", "The component's share of the layer's variance."),
]
PLACE_OF_PATTERN = ["layer_name", "image_id", "head", "query_y", "query_x"]
PLACE_ATTENTION_COLUMNS = [
    LAYER_NAME,
    IMAGE_ID,
    column("head", "integer", "The attention head, from 0."),
    column("query_y", "integer", "Row of the place that looks, in the layer."),
    column("query_x", "integer", "Its column."),
    column("key_y", "integer", "Row of the place that it looks at."),
    column("key_x", "integer", "Its column."),
    column("pattern", "real", "The weight; a head's add up to 1."),
]
