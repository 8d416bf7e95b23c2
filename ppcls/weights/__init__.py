"""Weights: published or own, into a network and out of it."""

from ppcls.weights.load import WeightsInfo, load_weights
from ppcls.weights.native import facts_about, hash_parameters, write_weights

__all__ = ["WeightsInfo", "facts_about", "hash_parameters", "load_weights", "write_weights"]
