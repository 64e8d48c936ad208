"""Picture files against the database: pixel by pixel, read back with Pillow."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import psycopg2
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image, ImageSequence

from conftest import run_script
from dbt_nn import database, pictures
from dbt_nn.database import PROJECT, DatabaseError

RESULTS = "test_pictures"  # of the user, which drawing leaves alone
SCHEMA = database.own_schema(RESULTS)
CHECKPOINT = "test_pictures_checkpoint"
HEIGHT, WIDTH, IMAGES, STEPS = 8, 16, 3, 3

Connection = psycopg2.extensions.connection
Make = Callable[..., None]


def rows(connection: Connection, query: str, values: Any = None) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module", autouse=True)
def schema(connection: Connection) -> Iterator[None]:
    """The schema of these tests, for scripts and for pictures.py in this process."""
    owned = [RESULTS, SCHEMA, f"{SCHEMA}_ddpm", CHECKPOINT]
    drop = "; ".join(f"drop schema if exists {name} cascade" for name in owned)
    rows(connection, f"{drop}; create schema {SCHEMA}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_NN_SCHEMA", SCHEMA)
        for name in ("OPTIONS", "CHECKPOINT", "NO_COLOR", "COLORTERM"):
            patch.delenv(name, raising=False)
        yield
    rows(connection, drop)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **os.environ,
        "DBT_NN_SCHEMA": RESULTS,
        "DBT_TARGET_PATH": str(tmp_path_factory.mktemp("target")),
    }


@pytest.fixture(scope="module")
def drawn(
    target: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CompletedProcess[str]]:
    """What draw.py wrote of a narrow network with the layers of models/ddpm."""
    folder = tmp_path_factory.mktemp("pictures")
    config = json.loads(
        (PROJECT / "checkpoints/ddpm-twin/unet/config.json").read_text("utf-8")
    )
    torch.manual_seed(0)
    unet = UNet2DModel.from_config(
        config,
        sample_size=(HEIGHT, WIDTH),
        block_out_channels=(8, 16, 24, 32),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "checkpoint")
    done = run_script(
        "load_checkpoint.py", str(folder / "checkpoint"), "--name", CHECKPOINT
    )
    assert done.returncode == 0, done.stderr
    done = draw(
        target,
        folder / "out",
        "scheduler=ddim",
        f"num_inference_steps={STEPS}",
        f"batch_size={IMAGES}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", done


def draw(target: dict[str, str], folder: Path, *options: str) -> CompletedProcess[str]:
    return run_script(
        "draw.py", *options, "--checkpoint", CHECKPOINT, "--out", str(folder),
        "--zoom", "1",
        env=target,
    )  # fmt: skip


@pytest.fixture
def make(connection: Connection) -> Iterator[Make]:
    """Make <network>_pixels, as if a network had drawn {(image_id, step): array}."""
    made = []

    def make(
        network: str, frames: dict[tuple[int, int], np.ndarray], last: int
    ) -> None:
        made.append(network)
        rows(
            connection,
            f"create table {SCHEMA}.{network}_pixels (image_id integer, step integer,"
            " timestep integer, y integer, x integer, pixel smallint[])",
        )
        for (image_id, step), array in frames.items():
            for (y, x), _ in np.ndenumerate(array[..., 0]):
                rows(
                    connection,
                    f"insert into {SCHEMA}.{network}_pixels"
                    " values (%s, %s, %s, %s, %s, %s)",
                    [image_id, step, last - step - 1, y, x, array[y, x].tolist()],
                )

    yield make
    for network in made:
        rows(connection, f"drop table {SCHEMA}.{network}_pixels")


def pixels(connection: Connection, image_id: int, step: int) -> np.ndarray:
    """[h, w, channels] of the view, a row a pixel."""
    found = rows(
        connection,
        f"select y, x, pixel from {SCHEMA}.ddpm_pixels "
        "where image_id = %s and step = %s",
        [image_id, step],
    )
    array = np.full((HEIGHT, WIDTH, 3), -1)
    for y, x, pixel in found:
        array[y, x] = pixel
    return array


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image).astype(int)


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """A GIF's frames, [h, w, 3], and how long each is shown."""
    with Image.open(path) as image:
        frames = [
            (np.asarray(frame.convert("RGB")).astype(int), frame.info["duration"])
            for frame in ImageSequence.Iterator(image)
        ]
    return [frame for frame, _ in frames], [duration for _, duration in frames]


def random_array(channels: int, seed: int = 0, side: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (side, side, channels))


# --- Files --------------------------------------------------------------------


def test_png_has_the_pixels_of_the_view(drawn: Any, connection: Connection) -> None:
    for image_id in range(1, IMAGES + 1):
        expected = pixels(connection, image_id, STEPS)
        assert expected.min() >= 0
        assert expected.std() > 10
        found = read(drawn[0] / f"ddpm-{image_id}.png")
        np.testing.assert_array_equal(found, expected)


def test_grid(drawn: Any) -> None:
    """Three images: two above, one below, white between and in the free place."""
    found = read(drawn[0] / "ddpm-grid.png")
    expected = np.full((2 * HEIGHT + 2, 2 * WIDTH + 2, 3), 255)
    for n, (y, x) in enumerate([(0, 0), (0, WIDTH + 2), (HEIGHT + 2, 0)], start=1):
        image = read(drawn[0] / f"ddpm-{n}.png")
        expected[y : y + HEIGHT, x : x + WIDTH] = image
    np.testing.assert_array_equal(found, expected)


def test_files_and_what_is_printed(drawn: Any) -> None:
    folder, done = drawn
    images = [f"ddpm-{n}.png" for n in range(1, IMAGES + 1)]
    assert sorted(path.name for path in folder.iterdir()) == [
        *images, "ddpm-grid.gif", "ddpm-grid.png",
    ]  # fmt: skip
    assert f"step {STEPS} of {STEPS}, timestep 0, {IMAGES} images" in done.stderr
    assert str(folder / "ddpm-grid.png") in done.stdout
    assert str(folder / "ddpm-grid.gif") in done.stdout
    assert f"{folder / images[0]} … {folder / images[-1]} (3 files)" in done.stdout
    # no terminal: no picture, no colours, no progress bar
    assert "▀" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_leaves_the_images_of_the_user_alone(
    drawn: Any, connection: Connection
) -> None:
    found = rows(
        connection,
        "select table_schema, table_name from information_schema.tables "
        "where table_schema like %s and table_name = 'ddpm_requests'",
        [f"{RESULTS}%"],
    )
    assert found == [(SCHEMA, "ddpm_requests")]


def test_pictures_are_of_the_last_run(connection: Connection) -> None:
    """Of the user's or of the command line's, whichever was later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBT_NN_SCHEMA", RESULTS)
        assert pictures.schema_of_last_run("one") == RESULTS
        rows(connection, f"create schema if not exists {RESULTS}")
        for newest in (SCHEMA, RESULTS, SCHEMA):
            # as dbt makes a table
            for statement in (
                f"drop table if exists {newest}.one_requests",
                f"create table {newest}.one_requests__dbt_tmp ()",
                f"alter table {newest}.one_requests__dbt_tmp rename to one_requests",
            ):
                rows(connection, statement)
            assert pictures.schema_of_last_run("one") == newest
    for schema in (SCHEMA, RESULTS):
        rows(connection, f"drop table {schema}.one_requests")


def test_pictures_of_an_earlier_run_go(make: Make, tmp_path: Path) -> None:
    """And nothing that is not of this command."""
    of_user = [
        "ddpm-best.png", "some-1.jpg", "some-1.png.txt", "some-1-large.png", "some.png",
        "some_1-1.png", "some-x.gif", "some-grids.png", "my-some-1.png",
    ]  # fmt: skip
    earlier = ["some-1.png", "some-3.png", "some--4.png", "some-3.gif"]
    earlier += ["some-grid.png", "some-grid.gif"]
    for name in of_user + earlier:
        (tmp_path / name).write_text("earlier")
    make("some", {(n, s): random_array(3) for n in (2,) for s in (0, 1)}, last=1)
    arguments = ["--network", "some", "--out", str(tmp_path)]
    done = run_script("pictures.py", *arguments, "--image", "2")
    assert done.returncode == 0, done.stderr
    ours = ["some-2.png", "some-2.gif"]
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*of_user, *earlier, *ours}
    done = run_script("pictures.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*of_user, *ours}
    enlarged = random_array(3).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(read(tmp_path / "some-2.png"), enlarged)


def test_gif_goes_from_noise_to_picture(
    drawn: Any, connection: Connection, tmp_path: Path
) -> None:
    """Of one image, whose colours fit a palette."""
    where = ["--out", str(tmp_path), "--zoom", "1"]
    done = run_script("pictures.py", "--image", "2", *where)
    assert done.returncode == 0, done.stderr
    frames, durations = frames_of(tmp_path / "ddpm-2.gif")
    assert len(frames) == STEPS + 1
    assert durations[-1] == pictures.GIF_LAST_MS > 5 * durations[0]
    zoom = 256 // HEIGHT
    for step, frame in enumerate(frames):
        enlarged = pixels(connection, 2, step).repeat(zoom, 0).repeat(zoom, 1)
        np.testing.assert_array_equal(frame, enlarged, f"step {step}")


def test_gif_of_a_grid_is_near_the_pixels(drawn: Any, connection: Connection) -> None:
    frames, _ = frames_of(drawn[0] / "ddpm-grid.gif")
    assert len(frames) == STEPS + 1
    zoom = frames[0].shape[0] // (2 * HEIGHT + 2)
    assert min(frames[0].shape[:2]) >= pictures.GIF_SIZE
    for step in (0, STEPS):
        found = frames[step][::zoom, ::zoom][:HEIGHT, :WIDTH]
        assert np.abs(found - pixels(connection, 1, step)).mean() < 8


def test_long_way_is_shown_in_sixty_frames(make: Make, tmp_path: Path) -> None:
    """Of images with different numbers of steps, which begin and end together."""
    last = {1: 150, 2: 7}
    frames = {
        (n, step): random_array(3, seed=1000 * n + step, side=2)
        for n, steps in last.items()
        for step in range(steps + 1)
    }
    make("long", {key: a for key, a in frames.items() if key[0] == 1}, last=150)
    drawings = pictures.read_drawings("long")
    assert len(drawings[0].frames) == 60
    pictures.write_pictures("long", drawings, tmp_path)
    found, durations = frames_of(tmp_path / "long-1.gif")
    assert len(found) == 60
    assert sum(durations[:-1]) < 5000
    np.testing.assert_array_equal(found[0][::128, ::128], frames[1, 0])
    np.testing.assert_array_equal(found[-1][::128, ::128], frames[1, 150])

    make("short", {key: a for key, a in frames.items() if key[0] == 2}, last=7)
    drawings += pictures.read_drawings("short")
    pictures.write_pictures("both", drawings, tmp_path)
    found, _ = frames_of(tmp_path / "both-grid.gif")
    assert len(found) <= 60
    for frame, at in ((found[0], 0), (found[-1], 1)):
        zoom = frame.shape[0] // 2
        small = frame[::zoom, ::zoom]
        np.testing.assert_array_equal(small[:, :2], frames[1, 150 * at])
        np.testing.assert_array_equal(small[:, 4:], frames[2, 7 * at])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(make: Make, tmp_path: Path, channels: int, mode: str) -> None:
    frames = {
        (n, s): random_array(channels, 10 * n + s) for n in (1, 2) for s in (0, 1)
    }
    make("some", frames, last=1)
    drawings = pictures.read_drawings("some")
    pictures.write_pictures("some", drawings, tmp_path)
    for n in (1, 2):
        path = tmp_path / f"some-{n}.png"
        with Image.open(path) as image:
            assert image.mode == mode
        np.testing.assert_array_equal(read(path), frames[n, 1].squeeze())
    assert len(frames_of(tmp_path / "some-grid.gif")[0]) == 2
    for depth in (0, 8, 24):
        assert pictures.preview(drawings[0].picture, depth, 80)


def test_zoom(make: Make, tmp_path: Path) -> None:
    array = random_array(3)
    make("some", {(1, 0): random_array(3, 1), (1, 1): array}, last=1)
    arguments = ["--network", "some", "--out", str(tmp_path), "--no-gif"]
    done = run_script("pictures.py", *arguments, "--zoom", "5")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["some-1.png"]
    enlarged = array.repeat(5, 0).repeat(5, 1)
    np.testing.assert_array_equal(read(tmp_path / "some-1.png"), enlarged)
    for bad in ("0", "-1", "x", "65"):
        done = run_script("pictures.py", *arguments, "--zoom", bad)
        assert done.returncode == 2
        assert "--zoom" in done.stderr


def test_file_is_written_whole_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "a.png"
    pictures.write_file(path, b"earlier")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, full)
            with pytest.raises(DatabaseError, match=r"a\.png .*No space left"):
                pictures.write_file(path, b"later")
        assert path.read_bytes() == b"earlier"
        assert [path] == [*path.parent.iterdir()]
    with pytest.raises(DatabaseError, match="can't be written"):
        pictures.write_file(path / "b.png", b"a file is no folder")


# --- Errors -------------------------------------------------------------------


def test_bad_options_leave_earlier_pictures_alone(
    drawn: Any, target: dict[str, str]
) -> None:
    folder, _ = drawn
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for option, message in {
        "num_inference_steps=0": "num_inference_steps must be a whole number",
        "steps=3": 'no option is named "steps"',
        "seed": "'seed' is not of the form name=value",
    }.items():
        done = draw(target, folder, option)
        assert done.returncode == 1
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(pictures.read_drawings("ddpm")) == IMAGES


def test_no_such_network(drawn: Any, tmp_path: Path) -> None:
    for network in ("nothing", "gpt2", "", "Robert'); drop table x;--", "../ddpm"):
        done = run_script(
            "pictures.py", "--network", network, "--out", str(tmp_path / "out")
        )
        assert done.returncode == 1
        assert f"dbt run --select {network}" in done.stderr
        assert "choose one that was: ddpm" in done.stderr
        assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


def test_nothing_drawn(make: Make) -> None:
    make("empty", {}, last=1)
    with pytest.raises(DatabaseError, match="nothing yet: run `dbt run --select empty"):
        pictures.read_drawings("empty")


def test_unfinished_image(make: Make) -> None:
    make("some", {(n, s): random_array(3) for n in (3, 1) for s in (0, 1)}, last=1)
    make("half", {(7, 0): random_array(3)}, last=2)
    with pytest.raises(DatabaseError, match=r"not finished image 7: .* goes on"):
        pictures.read_drawings("half")
    with pytest.raises(DatabaseError, match="no image 2, 9: its images are 1, 3"):
        pictures.read_drawings("some", [9, 1, 2])
    assert [drawing.image_id for drawing in pictures.read_drawings("some")] == [1, 3]


def test_unfinished_image_beside_others(make: Make) -> None:
    frames = {(1, 0): random_array(3), (1, 1): random_array(3), (2, 0): random_array(3)}
    make("some", frames, last=1)
    assert [drawing.image_id for drawing in pictures.read_drawings("some")] == [1]
    with pytest.raises(DatabaseError, match="not finished image 2"):
        pictures.read_drawings("some", [2, 1])


def test_other_channels(make: Make) -> None:
    make("two", {(1, 0): random_array(2), (1, 1): random_array(2)}, last=1)
    with pytest.raises(DatabaseError, match=r"2 channels.*query the view two_pixels"):
        pictures.read_drawings("two")


# --- In the terminal ----------------------------------------------------------


class Terminal(io.TextIOWrapper):
    """A stream that says that it is a terminal."""

    def __init__(self, encoding: str = "utf-8"):
        super().__init__(io.BytesIO(), encoding)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "depth"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, 24),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, 24),
        ({"TERM": "xterm-direct"}, 24),
        ({"TERM": "xterm-256color"}, 8),
        ({"TERM": "xterm"}, 0),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, 0),
        ({"COLORTERM": "truecolor"}, 0),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, 0),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}, 24),
    ],
)
def test_colour_depth(
    environment: dict[str, str], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert pictures.colour_depth(Terminal()) == depth
    assert pictures.colour_depth(Terminal("ascii")) == 0
    assert pictures.colour_depth(io.StringIO()) is None


def test_preview_in_colours() -> None:
    array = np.zeros((3, 2, 3), np.uint8)
    array[0, 0], array[1, 0] = (255, 0, 10), (1, 2, 3)
    lines = pictures.preview(Image.fromarray(array[:2]), 24, 80).split("\n")
    assert lines == [
        "\x1b[38;2;255;0;10;48;2;1;2;3m▀\x1b[38;2;0;0;0;48;2;0;0;0m▀\x1b[0m"
    ]
    [line] = pictures.preview(Image.fromarray(array[:2]), 8, 80).split("\n")
    assert line == "\x1b[38;5;196;48;5;16m▀\x1b[38;5;16;48;5;16m▀\x1b[0m"
    assert len(pictures.preview(Image.fromarray(array), 24, 80).split("\n")) == 2


def test_preview_in_shades() -> None:
    ramp = np.linspace(0, 255, 10).astype(np.uint8)[None].repeat(4, 0)
    lines = pictures.preview(Image.fromarray(ramp), 0, 80).split("\n")
    assert lines == [" .:-=+*#%@"] * 2


@pytest.mark.parametrize("depth", [0, 8, 24])
@pytest.mark.parametrize("size", [(1, 1), (500, 30), (30, 500), (999, 1000), (1, 900)])
def test_preview_fits_the_terminal(size: tuple[int, int], depth: int) -> None:
    text = pictures.preview(Image.new("RGB", size, "white"), depth, 40)
    lines = text.split("\n")
    assert 1 <= len(lines) <= pictures.PREVIEW_ROWS / 2
    for line in lines:
        assert 1 <= line.count("▀" if depth else "@") <= 40


def test_preview_shows_what_is_transparent_as_white() -> None:
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert pictures.preview(clear, 0, 80) == "@@"


def test_show(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make("some", {(1, s): random_array(3, s) for s in (0, 1)}, last=1)
    drawings = pictures.read_drawings("some", way=False)
    paths = pictures.write_pictures("some", drawings, tmp_path, animated=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for stream, marks in ((Terminal(), 8), (Terminal("ascii"), 0)):
        pictures.show(paths, drawings, stream)
        stream.seek(0)
        text = stream.read()
        assert text.count("▀") == marks
        assert text.endswith(f"\n\n{tmp_path / 'some-1.png'}\n")
    stream = io.StringIO()
    pictures.show(paths, drawings, stream)
    assert stream.getvalue() == f"{tmp_path / 'some-1.png'}\n"
