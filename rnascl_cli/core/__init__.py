"""Errors, console, units, distributed processes, progress and random streams; imports nothing else of rnascl."""
