"""Labels for a person's own images: a folder of drawings, made here, and what is said of sizes, classes and files."""

import csv
import json

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from hypergrad.cli import app
from hypergrad.errors import DataError, RunError
from hypergrad.fewshot.config import save_config
from hypergrad.fewshot.prediction import predict
from hypergrad.runs.directory import RunDirectory

SHAPES = ("cross", "disc", "stripes")


def drawing(shape, seed, size=56):
    """A shape in white on black, a little moved and of a random thickness."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    x, y = size / 2 + rng.uniform(-4, 4, 2)
    r, width = size / 3 + rng.uniform(-3, 3), int(rng.integers(4, 8))
    if shape == "disc":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "cross":
        draw.line((x - r, y - r, x + r, y + r), fill=255, width=width)
        draw.line((x - r, y + r, x + r, y - r), fill=255, width=width)
    else:
        for step in (-0.8, 0.0, 0.8):
            draw.line((x - r, y + step * r, x + r, y + step * r), fill=255, width=width)
    return image


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A support folder with two drawings of each shape, and four more of each to be labelled."""
    root = tmp_path_factory.mktemp("drawings")
    for i, shape in enumerate(SHAPES):
        (root / "support" / shape).mkdir(parents=True)
        for k in range(6):
            folder = root / "support" / shape if k < 2 else root
            drawing(shape, 10 * i + k).save(folder / f"{shape}{k}.png")
    return root / "support", sorted(root.glob("*.png"))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A trained run of a method on tiny images, open."""
    made = {}

    def run(method):
        if method not in made:
            config = tiny.tiny_config(method, iterations=10)
            made[method] = RunDirectory.create(tmp_path_factory.mktemp(method) / "run", save_config(config)), config
            tiny.tiny_train(*made[method])
        return made[method]

    yield run
    for opened, _ in made.values():
        opened.close()


def test_a_model_of_letters_labels_drawings(drawings, tmp_path, monkeypatch):
    """`hypergrad train --quick` on glyphs, then `hypergrad predict` on shapes it has never seen."""
    monkeypatch.setenv("HYPERGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    support, images = drawings
    runner = CliRunner()
    assert runner.invoke(app, ["train", "--quick", "--method", "protonet", "--run-dir", "run"]).exit_code == 0
    result = runner.invoke(app, ["predict", "run", str(support), *map(str, images), "--csv", "labels.csv"])
    assert result.exit_code == 0, result.output
    with open("labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(path) for path in images]
    right = [row["label"] == next(s for s in SHAPES if s in row["image"].rsplit("/", 1)[-1]) for row in rows]
    assert np.mean(right) >= 0.9
    assert all(sum(float(row[shape]) for shape in SHAPES) == pytest.approx(1.0, abs=1e-5) for row in rows)
    assert "resized to 28x28, the model's size" in result.output and "cross" in result.output


@pytest.mark.parametrize("method", ["hyper-representation", "maml", "protonet", "multiclass"])
def test_an_images_label_depends_on_nothing_but_it_and_the_support(drawings, run_of, method):
    support, images = drawings
    run, config = run_of(method)
    together = predict(run, config, support, images)
    alone = predict(run, config, support, images[3:4])
    assert np.array_equal(together.probabilities[3], alone.probabilities[0]) and together.labels[3] == alone.labels[0]
    assert together.classes == SHAPES and together.probabilities.shape == (len(images), 3) and len(together.resized) == len(images) + 6
    np.testing.assert_allclose(together.probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_invert_swaps_dark_and_light(drawings, run_of, tmp_path):
    support, images = drawings
    run, config = run_of("protonet")
    for path in [*support.rglob("*.png"), images[0]]:
        target = tmp_path / path.relative_to(support.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            Image.fromarray(255 - np.asarray(image)).save(target)
    plain = predict(run, config, support, images[:1])
    swapped = predict(run, config, tmp_path / "support", [tmp_path / images[0].name], invert=True)
    np.testing.assert_allclose(plain.probabilities, swapped.probabilities, atol=0.02)  # resizing rounds the other way


def test_wrong_folders_and_files_are_told(drawings, run_of, tmp_path):
    support, images = drawings
    run, config = run_of("maml")
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    for name in "ab":
        drawing("disc", 1).save(tmp_path / "two" / name / "1.png")
    with pytest.raises(RunError, match="has 2 classes, expected 3 because the classifier of MAML was trained for that many"):
        predict(run, config, tmp_path / "two", images)
    (tmp_path / "one" / "a").mkdir(parents=True)
    drawing("disc", 1).save(tmp_path / "one" / "a" / "1.png")
    with pytest.raises(DataError, match="expected two or more"):
        predict(run, config, tmp_path / "one", images)
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    with pytest.raises(DataError, match="broken.png"):
        predict(run, config, support, [broken])
    with pytest.raises(DataError, match="missing.png"):
        predict(run, config, support, [tmp_path / "missing.png"])


def test_a_model_file_without_the_image_size_is_asked_about(drawings, run_of):
    """As of format 2: the caller opens the data set then, and only then."""
    support, images = drawings
    run, config = run_of("protonet")
    known = predict(run, config, support, images, lambda: pytest.fail("asked although the file says it"))
    tensors, metadata = run.read_tensors("model.safetensors")
    shape = metadata.pop("image_shape")
    run.write_tensors("model.safetensors", tensors, metadata)
    try:
        asked = predict(run, config, support, images, lambda: shape)
        with pytest.raises(RunError, match="does not say the size of its images"):
            predict(run, config, support, images)
    finally:
        run.write_tensors("model.safetensors", tensors, {**metadata, "image_shape": shape})
    assert np.array_equal(known.probabilities, asked.probabilities)


def test_the_number_of_inner_steps_is_the_best_on_validation(drawings, run_of):
    support, images = drawings
    run, config = run_of("hyper-representation")
    usual = predict(run, config, support, images).probabilities
    run.write("result.json", json.dumps({"n_steps": 9}).encode())
    assert not np.array_equal(usual, predict(run, config, support, images).probabilities)
    (run.path / "result.json").unlink()
