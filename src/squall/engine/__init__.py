"""Where a job's processes live: `spmd` starts and watches lock-step ranks, `doctor` examines the machine."""
