"""Measure speed and memory on this machine, beside TRL: python scripts/benchmark.py part=step"""

from pathlib import Path

from lens.cli.entry_point import DictConfig, HydraConfig, entry_point


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    from lens.benchmarking.benchmark import benchmark

    benchmark(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()
