"""What runs how fast, measured in pairs: ``python -m benchmarks`` (docs/performance.md)."""
