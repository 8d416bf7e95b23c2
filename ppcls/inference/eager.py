"""The eager network: its description, as exports have one, and a predictor over it."""

from typing import TYPE_CHECKING

from ppcls.config import Activation
from ppcls.data.class_names import ClassNames
from ppcls.inference.artifact import Artifact
from ppcls.inference.engines.eager import EagerEngine
from ppcls.inference.predictor import BATCH_SIZE, Predictor
from ppcls.preprocessing import Preprocessing

if TYPE_CHECKING:
    from paddle import nn

    from ppcls.weights import WeightsInfo


def describe(
    model: "nn.Layer",
    preprocessing: Preprocessing | None,
    class_names: ClassNames | None = None,
    weights: "WeightsInfo | None" = None,
    activation: Activation | None = None,
) -> Artifact:
    """Return the description of an eager network, which returns logits and embeddings. activation: None for
    that of the weights."""
    return Artifact(
        model=model.model_name,
        num_classes=model.num_classes,
        output="logits",
        preprocessing=preprocessing,
        class_names=class_names,
        parameters_sha256="",
        weights=f"{weights.source}; sha256 {weights.sha256}" if weights else None,
        license=weights.license if weights else None,
        versions={},
        notes=weights.notes if weights else (),
        assumed=weights.assumed if weights else None,
        embeddings=model.fc.weight.shape[0],
        activation=activation or (weights.activation if weights else "softmax"),
    )


def eager_predictor(
    model: "nn.Layer",
    preprocessing: Preprocessing,
    class_names: ClassNames | None = None,
    *,
    topk: int = 5,
    num_workers: int | None = None,
    batch_size: int = BATCH_SIZE,
    kernels: str = "auto",
    activation: Activation = "softmax",
) -> Predictor:
    """Return a Predictor over a network of `build_model`, which is put into evaluation mode. kernels: see
    Config."""
    engine = EagerEngine(model, kernels)
    return Predictor(
        describe(model, preprocessing, class_names, activation=activation),
        lambda streams: engine,
        topk=topk,
        num_workers=num_workers,
        batch_size=batch_size,
        model=model,
    )
