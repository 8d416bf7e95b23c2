"""Write state.*, mixed.* (.pdparams) and optimizer.* (.pdopt) of this Paddle from expected.npz.

pip install paddlepaddle; python tests/golden/readers/make_paddle.py, once with Paddle 2 and once with 3
"""

from pathlib import Path

import numpy as np
import paddle

HERE = Path(__file__).parent


def main() -> None:
    arrays = dict(np.load(HERE / "expected.npz"))
    state = {key: paddle.to_tensor(array) for key, array in arrays.items()}
    state["bfloat16"] = state["bfloat16"].astype("bfloat16")
    # With anything but tensors in it, paddle.save writes each tensor as tuple((name, array)).
    mixed = {
        "weight": state["weight"],
        "bias": state["bias"],
        "transposed": arrays["base"].T,  # numpy keeps it in Fortran's order
        "epoch": 3,
        "note": None,
    }
    model = paddle.nn.Linear(2, 3)
    rate = paddle.optimizer.lr.StepDecay(0.1, 3)
    optimizer = paddle.optimizer.Adam(rate, parameters=model.parameters())
    model(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    major = paddle.__version__.split(".")[0]
    for protocol in (2, 4):
        paddle.save(state, str(HERE / f"state.paddle{major}.{protocol}.pdparams"), protocol=protocol)
        paddle.save(mixed, str(HERE / f"mixed.paddle{major}.{protocol}.pdparams"), protocol=protocol)
    paddle.save(optimizer.state_dict(), str(HERE / f"optimizer.paddle{major}.pdopt"))


if __name__ == "__main__":
    main()
