"""Training loops: clients of `squall.Run`."""

from squall.loop.minibatch import Job, minibatch

__all__ = ["Job", "minibatch"]
