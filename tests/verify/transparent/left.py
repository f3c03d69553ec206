"""What a training leaves behind, for a comparison of bits: weights, other states, and where its generators are."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch


def leave(state: dict[str, torch.Tensor], **others: object) -> None:
    generators = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    rank = os.environ["RANK"]
    whole = {name: one.full_tensor() if hasattr(one, "full_tensor") else one for name, one in state.items()}
    torch.save({"weights": whole, "generators": generators, **others}, Path(sys.argv[1]) / f"left-{rank}.pt")
