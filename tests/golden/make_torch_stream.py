"""Write tests/golden/torch_stream.pth and .npz: a small state dict in torch's format before 1.6.

pip install torch numpy; python tests/golden/make_torch_stream.py
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    state = OrderedDict(
        weight=torch.randn(2, 3, 1, 2),
        transposed=base.t(),
        part=base[1:3, 2:5],
        double=torch.randn(3, dtype=torch.float64),
        half=torch.randn(3).half(),
        num_batches_tracked=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    torch.save(state, HERE / "torch_stream.pth", _use_new_zipfile_serialization=False)
    np.savez(HERE / "torch_stream.npz", **{key: value.numpy() for key, value in state.items()})


if __name__ == "__main__":
    main()
