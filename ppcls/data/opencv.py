"""OpenCV, checked and set up: every module that needs it takes `cv2` from here."""

import os
import sys

from ppcls.errors import DataError

# The largest picture that is decoded, the limit at which Pillow too refuses one as a decompression
# bomb. OpenCV reads its own limit while it is being loaded: too late if others have done that before.
MAX_PIXELS = 178_956_970
IS_LIMITED = "cv2" not in sys.modules
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))

try:
    import cv2
except ImportError as error:
    raise DataError(
        f"OpenCV cannot be loaded: {error}. If a library such as libGL.so.1 is missing, as on a server "
        "without a screen, use the headless package: "
        "pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless"
    ) from error
if not hasattr(cv2, "IMREAD_COLOR_RGB"):
    raise DataError(
        f"OpenCV 4.11 or newer is needed. Received: {cv2.__version__}; pip install -U 'opencv-python>=4.11'"
    )
# The loader's threads are the parallelism: OpenCV's own would only oversubscribe the cores.
cv2.setNumThreads(1)
