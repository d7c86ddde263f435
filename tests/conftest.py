"""Settings of the whole suite: helpers can be imported, hypothesis is deterministic and quick."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("default", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("default")
