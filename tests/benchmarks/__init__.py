"""What the library costs, as ratios: ``python -m tests.benchmarks``. Each module has ``measure(quick) -> list[Row]``."""
