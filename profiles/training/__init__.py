"""Trains a pair like the demo pair from Python's own sources and documentation: `python -m profiles.training`."""
