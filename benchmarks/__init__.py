"""What is measured: each script checks, times, prints a table and fails loudly."""

import argparse


def options(name: str, about: str | None) -> argparse.ArgumentParser:
    """A script's options; what its docstring says, `--help` says."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"benchmarks.{name}", description=about, formatter_class=form)
