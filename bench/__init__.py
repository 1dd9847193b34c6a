"""Side-by-side measurements, as ratios within one run; never part of the tests. Run `python -m bench.NAME --help`."""
