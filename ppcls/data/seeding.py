"""Random numbers that depend on their purpose alone: the seed, the epoch, the image or the step."""

import numpy as np

# Fourth number of the entropy: streams beside that of (seed, epoch, index).
ERASING, MIXING, SAMPLING = 1, 2, 3


def random_state(*entropy: int) -> np.random.RandomState:
    """Return a generator for one purpose. Of numpy's generators only RandomState guarantees that its stream
    never changes."""
    return np.random.RandomState(np.random.SeedSequence(entropy).generate_state(4))
