"""Faults provoked on purpose: kills, signals, full disks, two processes, numbers that are none."""
