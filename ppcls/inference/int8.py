"""int8 forms of an exported network, quantised by NNCF on a user's own pictures.

A ladder of rungs leaves more and more in float. A rung is good enough if the int8 form gives the same class
first for the requested share of pictures that it was not calibrated on, and if its logits are near enough:
their distance is smoother than the share, and says something where a network puts all pictures in one class.
"""

import contextlib
import io
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ppcls.data.dataset import Dataset
from ppcls.data.loader import empty_batch, eval_batch_indices, fill_slot
from ppcls.data.transforms import EvalTransform, Normalizer
from ppcls.errors import ConfigError, ExportError, first_line
from ppcls.inference.artifact import Artifact, Int8Report
from ppcls.inference.engines import int8_engine, open_engine
from ppcls.inference.fastest import streams_for
from ppcls.inference.formats import INT8_FORMATS
from ppcls.inference.formats.format import FEWEST_PICTURES, Int8Options
from ppcls.inference.formats.int8 import INPUT, QUANTIZERS
from ppcls.inference.predictor import Predictor
from ppcls.intervals import wilson
from ppcls.preprocessing import Preprocessing
from ppcls.progress import progress_bar

Log = Callable[[str], None]
View = tuple[int, bool]  # the index of a picture, and whether it is mirrored
RUNGS = {"all layers": False, "linear projections in float": True}
CONTROLLED = "accuracy control"  # the last rung, on request
FAR = 0.3  # distance of the logits at which a network keeps 0.95 of its classes; see farthest()


def farthest(agreement: float) -> float:
    """Return the largest distance of the logits for a requested agreement.

    The share of changed classes grows with the square of the distance: EfficientNetLite0 changed 2, 4 and 7%
    of its photographs' classes at distances of 0.18, 0.22 and 0.30.
    """
    return FAR * math.sqrt((1 - agreement) / 0.05)


@dataclass(frozen=True)
class Pictures:
    """Pictures that were drawn and can be read. logits: of the float network, float32 [N, C]. halves: indices
    of those that calibrate, and of the others."""

    dataset: Dataset
    logits: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]

    def compare(self, logits: np.ndarray, tested: np.ndarray) -> tuple[int, float]:
        """Return for how many of the tested pictures the same class comes first, and the distance of their
        logits, ||a - b|| / ||b - mean of b||."""
        own = self.logits[tested]
        spread = np.linalg.norm(own - own.mean(axis=0))
        agreeing = int((logits.argmax(axis=1) == own.argmax(axis=1)).sum())
        return agreeing, float(np.linalg.norm(logits - own) / max(spread, np.finfo(np.float32).tiny))


class TimeOver(Exception):
    """Accuracy control has reached its limit."""


@dataclass(frozen=True)
class Ladder:
    """Makes the int8 forms in the folder of a float export."""

    folder: Path
    artifact: Artifact
    options: Int8Options
    threads: int
    log: Log

    def climb(self, name: str, pictures: Pictures) -> Int8Report | None:
        """Write the int8 form by the first rung that is good enough. Returns None if none is."""
        for words in RUNGS:
            report = self._try(name, words, pictures)
            if self._is_enough(name, report):
                return report
        if self.options.minutes is not None:
            try:
                report = self._control(name, pictures)
            except TimeOver:
                self.log(f"{name}, {CONTROLLED}: no result after {self.options.minutes:g} minutes")
            else:
                if self._is_enough(name, report):
                    return report
        return None

    def remove(self, name: str) -> None:
        """Remove the files of an int8 form."""
        for path in self._files(name):
            path.unlink()

    def draw(self, name: str) -> Pictures:
        """Draw the pictures, and run the float network on them, in the format that `name` is made from."""
        options, source = self.options, INT8_FORMATS[name]
        count = min(options.images, len(options.dataset))
        drawn = np.sort(np.random.RandomState(0).permutation(len(options.dataset))[:count])
        dataset = options.dataset.select(drawn.tolist())
        logits, readable = self._run(source.checked_with, source.name, dataset, options.on_error, "float")
        if len(readable) < count:
            self.log(f"left out, unreadable: {count - len(readable)} of {count} pictures")
            dataset = dataset.select(readable.tolist())
        if len(readable) < FEWEST_PICTURES:
            raise ExportError(f"--int8 needs {FEWEST_PICTURES} pictures. Received: {len(readable)} readable.")
        if len(set(logits.argmax(axis=1).tolist())) == 1:
            self.log("note: the network puts all pictures in one class: only the logits' distance counts")
        mixed = np.random.RandomState(1).permutation(len(readable))
        return Pictures(dataset, logits, (np.sort(mixed[::2]), np.sort(mixed[1::2])))

    def _is_enough(self, name: str, report: Int8Report) -> bool:
        low, high = report.interval
        self.log(
            f"{name}, {report.rung}: the same class for {report.agreement:.4f} of {report.tested} pictures "
            f"(95% confidence: {low:.4f} to {high:.4f}; requested {report.wanted:g}), distance of the logits "
            f"{report.distance:.3f} (at most {farthest(report.wanted):.3f})"
        )
        return report.agreement >= report.wanted and report.distance <= farthest(report.wanted)

    def _try(self, name: str, rung: str, pictures: Pictures) -> Int8Report:
        """Quantise twice, calibrated on each half and tested on the other. The file of the second time, which
        the first half calibrated, stays."""
        logits = np.empty_like(pictures.logits)
        first, second = pictures.halves
        for calibrating, tested in ((second, first), (first, second)):
            network = QUANTIZERS[name].read(self.folder)
            kept = QUANTIZERS[name].linear_layers(network) if RUNGS[rung] else []
            with self._items(pictures, 2 * len(calibrating), f"{name}, {rung}: calibrate") as load:
                quantized = _quantize(network, load, calibrating, kept, self.options)
            logits[tested] = self._save_and_run(name, quantized, pictures.dataset.select(tested.tolist()))
        everything = np.arange(len(logits))
        return self._report(name, rung, quantized, pictures, logits, everything)

    def _control(self, name: str, pictures: Pictures) -> Int8Report:
        """Quantise with accuracy control on the first half, and test on the second. Raises TimeOver."""
        nncf = _import_nncf()
        end = time.monotonic() + 60 * (self.options.minutes or 0)
        classes, (first, second) = pictures.logits.argmax(axis=1), pictures.halves
        with self._items(pictures, None, f"{name}, {CONTROLLED}") as load:
            last: list[Any] = [None, None]  # a network and what runs it: opening takes longer than running

            def agreement(network: Any, views: Sequence[View]) -> tuple[float, None]:
                if last[0] is not network:
                    last[:] = network, QUANTIZERS[name].open(network)
                results = []
                for view in views:
                    if time.monotonic() > end:
                        raise TimeOver
                    results.append(last[1](load(view)[INPUT])[0].argmax() == classes[view[0]])
                return float(np.mean(results)), None

            validation = nncf.Dataset([(index, False) for index in first.tolist()], load)
            quantized = _quantize(
                QUANTIZERS[name].read(self.folder), load, first, [], self.options, (validation, agreement)
            )
        logits = self._save_and_run(name, quantized, pictures.dataset.select(second.tolist()))
        return self._report(name, CONTROLLED, quantized, pictures, logits, second)

    def _report(
        self, name: str, rung: str, network: Any, pictures: Pictures, logits: np.ndarray, tested: np.ndarray
    ) -> Int8Report:
        agreeing, distance = pictures.compare(logits, tested)
        return Int8Report(
            rung=rung,
            made_for=self.options.made_for,
            agreement=agreeing / len(tested),
            interval=wilson(agreeing, len(tested)),
            wanted=self.options.agreement,
            distance=distance,
            calibrated=len(pictures.halves[0]),
            tested=len(tested),
            float_layers=QUANTIZERS[name].float_layers(network),
        )

    @contextlib.contextmanager
    def _items(self, pictures: Pictures, total: int | None, words: str) -> Any:
        """Yield a function that loads a view of a picture as NNCF takes it, and moves a progress bar."""
        preprocessing = self._preprocessing()
        transform = EvalTransform(preprocessing)
        normalize = Normalizer(preprocessing.mean, preprocessing.std)
        with progress_bar(total, words, delay=1.0) as bar:

            def load(view: View) -> dict[str, np.ndarray]:
                (index, is_mirrored), slot = view, empty_batch(1, preprocessing)
                fill_slot(pictures.dataset.read(index), index, transform, normalize, slot[0])
                bar.update()
                image = slot[..., ::-1] if is_mirrored else slot
                return {INPUT: np.repeat(image, self.artifact.batch_size or 1, axis=0)}

            yield load

    def _preprocessing(self) -> Preprocessing:
        if self.artifact.preprocessing is None:
            raise ConfigError("--int8 needs the preprocessing of the pictures.")
        return self.artifact.preprocessing

    def _files(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{Path(QUANTIZERS[name].file).stem}.*"))

    def with_form(self, name: str) -> Artifact:
        """Return the artifact with an int8 form that is written."""
        sizes = {path.name: path.stat().st_size for path in self._files(name)}
        return replace(self.artifact, files={**self.artifact.files, name: sizes})

    def _save_and_run(self, name: str, network: Any, dataset: Dataset) -> np.ndarray:
        """Write an int8 form, and return the logits of its file."""
        self.remove(name)
        QUANTIZERS[name].save(network, self.folder / QUANTIZERS[name].file)
        return self._run(int8_engine(name), name, dataset, "fail", "test")[0]

    def _run(
        self, engine: str, name: str, dataset: Dataset, on_error: str, words: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of an engine, and the indices of the pictures, without unreadable ones."""
        artifact = self.with_form(name) if name in INT8_FORMATS else self.artifact

        def opened(streams: int) -> Any:
            share = max(1, self.threads // streams)
            return open_engine(self.folder, artifact, engine, threads=share, streams=streams)

        streams = streams_for(artifact, self.threads)
        predictor = Predictor(artifact, opened, streams=streams, num_workers=self.threads, bulk=True)
        batches = eval_batch_indices(len(dataset), predictor.batch_size)
        logits, readable = [], []
        with progress_bar(len(dataset), f"{name}: {words}", delay=1.0) as bar:
            for batch, outputs in predictor.run(dataset, batches, on_error=on_error):
                bar.update(len(batch.indices))
                if len(batch.indices):
                    logits.append(predictor.to_logits(outputs[0]))
                    readable.append(batch.indices)
        if not logits:
            raise ExportError(f"--int8: none of {len(dataset)} pictures can be read.")
        return np.concatenate(logits), np.concatenate(readable)


def _import_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # without telemetry
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantize(
    network: Any,
    load: Callable[[View], dict[str, np.ndarray]],
    indices: np.ndarray,
    kept: Sequence[str],
    options: Int8Options,
    control: tuple[Any, Any] | None = None,
) -> Any:
    """Return a network in int8. indices: of the pictures that calibrate it, each also mirrored, which costs
    no picture and brings the statistics nearer to those of others. kept: names of layers that stay in float.
    control: the data and the function of accuracy control."""
    nncf = _import_nncf()
    fix = nncf.OverflowFix.ENABLE if options.made_for == "any" else nncf.OverflowFix.DISABLE
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
    given: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED,  # activations asymmetric: swish has values below 0
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": 2 * len(indices),
        "ignored_scope": nncf.IgnoredScope(names=list(kept)),
    }
    data = nncf.Dataset([(index, mirror) for index in indices.tolist() for mirror in (False, True)], load)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its own progress bars
            if control is None:
                return nncf.quantize(network, data, **given, advanced_parameters=parameters)
            drop = {"max_drop": 1 - options.agreement, "drop_type": nncf.DropType.ABSOLUTE}
            given |= drop | {"advanced_quantization_parameters": parameters}
            return nncf.quantize_with_accuracy_control(network, data, *control, **given)
    except TimeOver:
        raise
    except Exception as error:  # NNCF has its own exceptions, and lets those of the engines pass
        raise ExportError(f"NNCF cannot quantise the network: {first_line(error)}") from error
