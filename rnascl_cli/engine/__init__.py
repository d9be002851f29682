"""What every stage needs around its mathematics: device, optimiser, run directory, metrics, progress."""
