"""WHAT BECAME OF IT: measures, readings, statistics, verdicts, curves, report, W&B."""
