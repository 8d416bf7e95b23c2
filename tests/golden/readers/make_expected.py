"""Write expected.npz: the values that the files beside it hold.

Then run make_torch.py, make_paddle.py (with Paddle 2 and with Paddle 3) and make_safetensors.py, which put
them into files.
"""

from pathlib import Path

import numpy as np


def main() -> None:
    random = np.random.RandomState(0)
    base = random.randn(4, 6).astype(np.float32)
    upper = random.randn(5).astype(np.float32).view(np.uint32) & 0xFFFF0000
    np.savez(
        Path(__file__).with_name("expected.npz"),
        weight=random.randn(3, 2, 1, 2).astype(np.float32),
        bias=random.randn(3).astype(np.float32),
        half=random.randn(4).astype(np.float16),
        bfloat16=upper.astype(np.uint32).view(np.float32),
        double=random.randn(2, 3),
        count=np.array(2**40 + 7),
        flags=np.array([True, False, True]),
        base=base,
        transposed=base.T,
        part=base[1:3, 2:5],
        empty=np.zeros((0, 3), np.float32),
    )


if __name__ == "__main__":
    main()
