"""Trainings that end with the same bits whether `squall verify` looks at them or not."""
