"""Data sets for meta-learning, and the episodes drawn from them.

`open_dataset` gives three splits of images grouped by class; `EpisodeSampler` draws few-shot episodes from a
split; `pixel_baseline` says what raw pixels achieve. Nothing is ever downloaded.
"""

from .baseline import Accuracy, pixel_baseline
from .cache import cache_dir
from .episodes import Episodes, EpisodeSampler
from .images import ImageClasses, MetaDataset, gather, to_float
from .registry import OPTIONS, open_dataset
from .report import Reporter, SilentReporter
from .unpickle import read_pickle

read_images = read_support_folder = None

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
    "read_pickle",
    "to_float",
]
