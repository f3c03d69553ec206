"""Where samples come from, who sees which in what order, and how they become batches."""
