"""Where a job's processes live: `spmd` starts lock-step ranks, `doctor` examines the machine they run on."""
