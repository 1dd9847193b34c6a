"""Arithmetic on plain data: what a machine can do, and the best way to run a model on it. Imports no torch."""
