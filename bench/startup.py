"""How long help takes: `planner --help` and `runtime generate --help`, as whole processes; DESIGN's bound is 0.5 s."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.models import print_header, print_json

BOUND_S = 0.5


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    print_header("start-up")
    medians = {}
    for command in (("planner", "--help"), ("runtime", "generate", "--help")):
        times = [timed(command) for _ in range(options.runs)]
        medians[" ".join(command)] = statistics.median(times)
        median_s = statistics.median(times)
        print(f"{' '.join(command):24} {median_s * 1e3:6.0f} ms = {median_s / BOUND_S:.2f} of {BOUND_S} s")
    print_json(medians)


def timed(command: tuple[str, ...]) -> float:
    """Seconds of one process."""
    program = Path(sys.executable).parent / command[0]
    start_s = time.perf_counter()
    subprocess.run([str(program), *command[1:]], check=True, capture_output=True)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
