"""Costs of the library, as ratios: ``python -m tests.benchmarks``. Each module has ``measure(quick) -> list[Row]``."""
