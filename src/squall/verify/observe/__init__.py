"""What runs inside the ranks of an observed training."""
