"""Weights of networks: find, read, identify, load, convert and write them."""

from ppcls.weights.load import WeightsInfo, load_weights
from ppcls.weights.native import hash_parameters, metadata_of, write_weights

__all__ = ["WeightsInfo", "hash_parameters", "load_weights", "metadata_of", "write_weights"]
