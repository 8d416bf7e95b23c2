"""Write paddleclas.npz and paddleclas_blocks.npz: what PaddleClas 2.6.0 computes. README.md says how."""

from pathlib import Path

import numpy as np
import paddle
import paddleclas
from seeded import BLOCK_SIZE, ODD_SIZE, draw, draw_input, list_keys, list_stage_starts, name_entry

from ppcls.architectures import MODELS
from ppcls.weights.keymaps import key_map

HERE = Path(__file__).parent
BLOCK_CHANNELS = slice(None, None, 16)  # of a block's output, to keep the file small


def build(name: str) -> paddle.nn.Layer:
    """PaddleClas has no Fix_ResNeXt101_32x48d_wsl: it is the 32x48d network at another size."""
    # its parameters have names, which may occur once in a process: hence the guard
    with paddle.LazyGuard(), paddle.utils.unique_name.guard():
        network = getattr(paddleclas, name.removeprefix("Fix_"))()
    state = network.state_dict()
    names = key_map("paddleclas", name, list_keys(name))
    assert set(names.values()) == set(state)
    for ours, theirs in names.items():
        state[theirs].set_value(draw(name, ours, tuple(state[theirs].shape)))
    network.eval()
    return network


def list_inputs(name: str) -> list[tuple[int, ...]]:
    size = MODELS[name].image_size
    shapes = [(1, 3, size, size)]
    # its EfficientNetB0 to B7 pad for the nominal size whatever the image's, so they are right there only
    if name.endswith(("small", "wsl")) and not name.startswith("Fix_"):
        shapes.append((2, 3, *ODD_SIZE))
    return shapes


@paddle.no_grad()
def main() -> None:
    logits, blocks = {}, {}
    for name in MODELS:
        if name.startswith("EfficientNetLite"):  # not in PaddleClas
            continue
        network = build(name)
        for shape in list_inputs(name):
            logits[name_entry(name, shape)] = network(paddle.to_tensor(draw_input(*shape))).numpy()
            print(name, shape, f"logits of standard deviation {logits[name_entry(name, shape)].std():.2f}")
        if name.startswith("ResNeXt101"):
            for stage, index in enumerate(list_stage_starts(name)):
                block = getattr(network, f"_conv{stage + 1}_0")
                channels = block._conv0._conv.weight.shape[1]
                shape = (1, channels, *BLOCK_SIZE)
                output = block(paddle.to_tensor(draw_input(*shape)))
                blocks[name_entry(f"{name}/{index}", shape)] = output.numpy()[:, BLOCK_CHANNELS]
        del network
    np.savez_compressed(HERE / "paddleclas.npz", **logits)
    np.savez_compressed(HERE / "paddleclas_blocks.npz", **blocks)


if __name__ == "__main__":
    main()
