"""What a script finds of itself and of what it calls."""

import inspect
import json
import os
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

folder = sys.argv[1]
before = Path(__file__).is_absolute()
os.chdir(folder)
functions = [torch.autograd.backward, torch.nn.utils.clip_grad_norm_, torch.manual_seed, torch.amp.GradScaler.step]
facts = {
    "name": __name__,
    "file": __file__,
    "absolute": before,
    "arguments": sys.argv[1:],
    "folder": sys.path[0],
    "signatures": [str(inspect.signature(one)) for one in functions],
    "scheduler": str(inspect.signature(torch.optim.lr_scheduler.StepLR)),
    "loader": str(inspect.signature(DataLoader)),
    "kinds": [type(random.Random(1)).__qualname__, np.random.RandomState.__qualname__],
    "pickled": [len(pickle.dumps(one)) > 0 for one in (random.Random(1), np.random.RandomState, torch.manual_seed)],
    "is": isinstance(np.random.mtrand._rand, np.random.RandomState),
    "main": sys.modules["__main__"].__dict__["folder"] == folder,
}
Path(f"facts-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(facts))
