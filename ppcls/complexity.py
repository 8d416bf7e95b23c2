"""What a network costs: multiply-adds of one image."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddle import nn


def multiply_adds(model: "nn.Layer", height: int, width: int) -> int:
    """Of all convolutions and linear layers for one image, exactly: an output value of a convolution takes
    kernel height x kernel width x input channels / groups. Counted while an image runs through."""
    import paddle
    from paddle import nn

    total = 0

    def count(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        weights_per_output = layer.weight.shape[0]  # of a linear layer, [in, out]
        if isinstance(layer, nn.Conv2D):
            _, channels, kernel_height, kernel_width = layer.weight.shape
            weights_per_output = channels * kernel_height * kernel_width
        total += weights_per_output * output.size

    layers = [layer for layer in model.sublayers() if isinstance(layer, (nn.Conv2D, nn.Linear))]
    hooks = [layer.register_forward_post_hook(count) for layer in layers]
    was_training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            model(paddle.zeros([1, 3, height, width]))
    finally:
        for hook in hooks:
            hook.remove()
        if was_training:
            model.train()
    return int(total)
