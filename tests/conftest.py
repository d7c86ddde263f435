"""Settings of the whole suite: the helpers beside the tests can be imported, hypothesis is deterministic and quick."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("default", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("default")
