import numpy as np
from numpy.typing import NDArray

def align(
    emissions: list[NDArray[np.float32]],
    labels: list[NDArray[np.int32]],
    blank: int,
    paths: list[NDArray[np.int32]],
    losses: NDArray[np.float64],
    with_loss: bool,
    num_threads: int,
) -> None: ...
