"""OpenCV, checked and configured: every module that needs it imports `cv2` from here."""

import os
import sys

from ppcls.errors import DataError

# The largest image that is decoded. Pillow refuses larger ones too, as decompression bombs. OpenCV reads its
# limit while it is imported, so setting the limit has no effect if cv2 was imported before.
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
# The loader runs its own threads, one for each core: with OpenCV's there would be more threads than cores.
cv2.setNumThreads(1)
