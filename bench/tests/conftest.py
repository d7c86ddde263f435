"""The settings of the whole suite hold here, too: which hypergrad is tested, and that hypothesis is deterministic and quick."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "tests/conftest.py"))
