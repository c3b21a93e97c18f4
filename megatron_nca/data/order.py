"""The order in which training reads the sequences of a generated dataset: known before any of them is there."""

import numpy as np


def training_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Permutation int64 (count,) of the sequences in `epoch`, counted from 0, at a training seed."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def order_from(seed: int, consumed: int, count: int) -> np.ndarray:
    """All sequences (count,) as a training reads them that has consumed so many: the rest of its epoch, then those
    that stand before it in that epoch, which only the next one reads."""
    epoch, position = divmod(consumed, count)
    return np.roll(training_order(seed, epoch, count), -position)
