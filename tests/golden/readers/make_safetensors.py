"""Write plain.safetensors from expected.npz.

pip install safetensors numpy; python tests/golden/readers/make_safetensors.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def main() -> None:
    arrays = {key: array.copy(order="C") for key, array in np.load(HERE / "expected.npz").items()}
    save_file(arrays, HERE / "plain.safetensors", {"model": "any", "licence": "none"})


if __name__ == "__main__":
    main()
