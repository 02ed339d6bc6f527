"""What the library costs, as ratios: ``python -m tests.benchmarks``. A module has ``measure(quick) -> list[Row]``."""
