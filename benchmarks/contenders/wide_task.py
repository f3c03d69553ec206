"""The same network and set as a task of Squall's; the number of samples stands in SAMPLES."""

import os

import torch.nn.functional as F
from wide import network, samples

import squall

task = squall.Task(model=network, loss=F.cross_entropy, train=samples(int(os.environ["SAMPLES"])))
