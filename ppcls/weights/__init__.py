"""Weights: published or own, into a network and out of it."""

from ppcls.weights.load import WeightsInfo, load_weights
from ppcls.weights.native import write_weights

__all__ = ["WeightsInfo", "load_weights", "write_weights"]
