"""Data sets for meta-learning, and the episodes drawn from them.

`open_dataset` gives three splits of images grouped by class; `EpisodeSampler` draws few-shot episodes from a split; `pixel_baseline` says
what raw pixels achieve; `read_images` and `read_support_folder` read a person's own images for prediction. Nothing is ever downloaded.
"""

from .cache import cache_dir
from .decode import read_images, read_support_folder
from .episodes import Accuracy, Episodes, EpisodeSampler, pixel_baseline
from .images import ImageClasses, MetaDataset, gather, to_float
from .registry import OPTIONS, open_dataset
from .report import Reporter, SilentReporter
from .unpickle import read_pickle

__all__ = [
    "OPTIONS",
    "Accuracy",
    "EpisodeSampler",
    "Episodes",
    "ImageClasses",
    "MetaDataset",
    "Reporter",
    "SilentReporter",
    "cache_dir",
    "gather",
    "open_dataset",
    "pixel_baseline",
    "read_images",
    "read_pickle",
    "read_support_folder",
    "to_float",
]
