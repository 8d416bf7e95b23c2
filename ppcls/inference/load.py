"""A predictor from a name: three lines of Python from nothing to classes."""

from pathlib import Path

from ppcls.architectures import MODELS, build_model
from ppcls.data.class_names import read_class_names
from ppcls.errors import ExportError, suggest
from ppcls.inference.cache import cached_export
from ppcls.inference.fastest import Say, to_stderr
from ppcls.inference.predictor import Predictor


def load(
    model: str | Path,
    engine: str = "auto",
    *,
    topk: int = 5,
    threads: int | None = None,
    say: Say = to_stderr,
) -> Predictor:
    """A Predictor of an exported folder, or of a published model by its name, such as "EfficientNetLite0".

    The published weights are fetched, exported and kept in the cache; from the second time on this needs no
    Paddle. Raises ExportError for a name that is neither, WeightsError where the weights can't be had.
    """
    if Path(model).is_dir():
        return Predictor(model, engine, topk=topk, threads=threads, say=say)
    if model not in MODELS:
        raise ExportError(
            "Expected: a folder that tools/export_model.py has written, or a model's name. Received: "
            f"{model}; {suggest(str(model), MODELS)}"
        )
    return Predictor(_export_published(str(model), say), engine, topk=topk, threads=threads, say=say)


def _export_published(name: str, say: Say) -> Path:
    from ppcls.inference.versions import versions
    from ppcls.weights.load import locate, sha256_of

    def export(folder: Path) -> None:
        from ppcls import distributed
        from ppcls.inference.export import export_model
        from ppcls.inference.formats import writable_formats
        from ppcls.weights import load_weights

        say(f"{name}: exporting the published weights to the cache, once")
        distributed.start("auto")
        import paddle

        with paddle.LazyGuard():
            model = build_model(name)
        info = load_weights(model, "pretrained")
        if info.preprocessing is None:
            raise ExportError(f"Nothing says how images are to be prepared for the weights {info.source}.")
        formats, _ = writable_formats(model)
        export_model(
            model,
            folder,
            preprocessing=info.preprocessing,
            class_names=read_class_names("imagenet1k", model.num_classes),
            info=info,
            formats=formats,
            threads=distributed.cores(),
            say=say,
        )

    return cached_export([name, sha256_of(locate(name, "pretrained")), versions()], export)
