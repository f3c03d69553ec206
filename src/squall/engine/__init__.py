"""Where a job's processes live: `squall.engine.spmd` starts lock-step ranks, `squall.engine.doctor` examines a machine."""
