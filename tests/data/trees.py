"""Small trees of image files for the tests of the readers."""

import zipfile

import numpy as np
from PIL import Image

from hypergrad.data import SilentReporter, open_dataset


def opened(name, root, cache, **options):
    """A data set of trees so small that no number of classes is asked for."""
    return open_dataset(name, root, cache=cache, reporter=SilentReporter(), **{"n_way": 1, **options})


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(value, size=(20, 30)):
    return np.full(size, value, np.uint8)


def zip_tree(root, archive, members):
    with zipfile.ZipFile(archive, "w") as file:
        for member in members:
            for path in sorted((root / member).rglob("*.*")):
                file.write(path, path.relative_to(root).as_posix())
