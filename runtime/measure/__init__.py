"""Measures a machine, a target and its drafts as they are deployed, for the planner: what `planner profile` runs."""
