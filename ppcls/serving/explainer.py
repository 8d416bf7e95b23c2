"""Explain pictures: which regions speak for a class, for models whose network itself is at hand."""

import io
import sys
import threading
import traceback

import numpy as np
from PIL import Image

from ppcls.build import Log, build_to_run
from ppcls.config import Config
from ppcls.errors import PpclsError
from ppcls.evaluation.explain import QUALITY, draw_heat  # imports Paddle
from ppcls.inference.predictor import Predictor
from ppcls.serving.protocol import RequestError


class Explainer:
    """Draws explanations, one at a time, by the eager network of a config. It is built for the first one, if
    the predictor has none."""

    def __init__(self, config: Config, predictor: Predictor, log: Log) -> None:
        self._config, self._log = config, log
        self._model, self._preprocessing = predictor.model, predictor.preprocessing
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> bytes:
        """Return a JPEG of a normalised image float32 [1, 3, S, S] with the heat of its class over it. Raises
        RequestError if another one is being drawn, or if the network cannot be built."""
        if not self._lock.acquire(blocking=False):  # waiting would keep a worker from predictions
            raise RequestError(429, "Another picture is being explained.", {"Retry-After": "1"})
        try:
            if self._model is None:
                self._model = build_to_run(self._config, self._log).model
                self._model.eval()
            (picture,) = draw_heat(self._model, images, self._preprocessing)
        except PpclsError as error:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            raise RequestError(503, "The network could not be loaded.") from error
        finally:
            self._lock.release()
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "jpeg", quality=QUALITY)
        return buffer.getvalue()
