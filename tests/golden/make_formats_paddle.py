"""Write PaddleClas's files into a folder, and add to formats.npz and formats_keys.json. README.md says how.

python tests/golden/make_formats_paddle.py DIR [MODEL ...]
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from seeded import draw_input, list_keys, name_entry

from ppcls.architectures import MODELS
from ppcls.weights.keymaps import key_map

# make_formats_torch takes `record` and `choose_shape` from here, in an environment without Paddle: hence the
# imports inside the functions.

HERE = Path(__file__).parent
SMALLEST_SIZE = 96


def choose_shape(name: str) -> tuple[int, ...]:
    """Of one image, smaller than the network's own but padded like it.

    PaddleClas and lukemelas's packages compute the padding once, for the nominal size. The layers halve an
    image at most five times, so a size with the same rest by 32 is even and odd at the same layers.
    """
    size = SMALLEST_SIZE + MODELS[name].image_size % 32
    return (1, 3, size, size)


def hash_keys(shapes: dict[str, tuple[int, ...]]) -> str:
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def record(
    file: str, name: str, shapes: dict[str, tuple[int, ...]], logits: np.ndarray | None = None
) -> None:
    """Add what is known of a source's file: whose weights it holds, its keys, what the source computes."""
    keys_path, logits_path = HERE / "formats_keys.json", HERE / "formats.npz"
    files = json.loads(keys_path.read_text(encoding="utf-8")) if keys_path.exists() else {}
    files[file] = {"model": name, "keys": hash_keys(shapes)}
    text = json.dumps(dict(sorted(files.items())), indent=1)
    keys_path.write_text(f"{text}\n", encoding="utf-8")
    if logits is None:
        return
    arrays = {}
    if logits_path.exists():
        with np.load(logits_path) as stored:
            arrays = {entry: stored[entry] for entry in stored.files}
    arrays[name_entry(file, choose_shape(name))] = logits
    np.savez_compressed(logits_path, **dict(sorted(arrays.items())))
    print(file, f"logits of standard deviation {logits.std():.2f}", flush=True)


def make(folder: Path, name: str) -> None:
    """The file of today's PaddleClas, and the older one, whose keys are the parameters' names."""
    import paddle
    from make_paddleclas import build

    network = build(name)
    state = network.state_dict()
    file, older = f"paddleclas/{name}.pdparams", f"paddleclas-names/{name}.pdparams"
    paddle.save(state, str(folder / file))
    parameters = {tensor.name: tensor for tensor in state.values()}
    assert set(parameters) == set(key_map("paddleclas-names", name, list_keys(name)).values())
    paddle.save({key: tensor.numpy() for key, tensor in parameters.items()}, str(folder / older))
    with paddle.no_grad():
        logits = network(paddle.to_tensor(draw_input(*choose_shape(name)))).numpy()
    record(file, name, {key: tuple(tensor.shape) for key, tensor in state.items()}, logits)
    record(older, name, {key: tuple(tensor.shape) for key, tensor in parameters.items()})


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or MODELS
    for source in ("paddleclas", "paddleclas-names"):
        (folder / source).mkdir(parents=True, exist_ok=True)
    for name in names:
        if not name.startswith("EfficientNetLite"):  # not in PaddleClas
            make(folder, name)


if __name__ == "__main__":
    main()
