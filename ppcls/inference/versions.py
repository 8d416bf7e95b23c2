"""What is installed of all that has a part in exporting and running."""

from importlib.metadata import PackageNotFoundError, version

import ppcls

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddle2onnx", "onnx", "onnxruntime", "openvino")


def versions() -> dict[str, str]:
    """Each installed package's version, and ppcls's own."""
    found = {"ppcls": ppcls.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
