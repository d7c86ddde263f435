"""Data sets for meta-learning, the episodes drawn from them, and classification data.

`open_dataset` gives three splits of images grouped by class; from a split, `EpisodeSampler` draws few-shot episodes, and `ImageSampler`
labelled images; `pixel_baseline` says what raw pixels achieve; `read_images` and `read_support_folder` read a person's own images for
prediction. `open_labelled` gives labelled images in a training, a validation and a test part. Nothing is ever downloaded.
"""

from .cache import cache_dir
from .decode import read_images, read_support_folder
from .episodes import Accuracy, Episodes, EpisodeSampler, ImageSampler, LabelledBatch, pixel_baseline
from .idx import read_idx, read_mnist
from .images import ImageClasses, MetaDataset, gather, to_float
from .labelled import Examples, LabelledImages, open_labelled
from .registry import OPTIONS, open_dataset
from .report import Reporter, SilentReporter
from .unpickle import read_pickle

__all__ = [
    "OPTIONS",
    "Accuracy",
    "EpisodeSampler",
    "Episodes",
    "Examples",
    "ImageClasses",
    "ImageSampler",
    "LabelledBatch",
    "LabelledImages",
    "MetaDataset",
    "Reporter",
    "SilentReporter",
    "cache_dir",
    "gather",
    "open_dataset",
    "open_labelled",
    "pixel_baseline",
    "read_idx",
    "read_images",
    "read_mnist",
    "read_pickle",
    "read_support_folder",
    "to_float",
]
