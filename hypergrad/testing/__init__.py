"""Checks of derivatives, for a function and for a whole bilevel problem. An AssertionError names both numbers and the likely cause."""

from .gradients import GradientReport, check_gradients
from .problems import HypergradReport, check_hypergrad

__all__ = ["GradientReport", "HypergradReport", "check_gradients", "check_hypergrad"]
