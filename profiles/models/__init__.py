"""Shapes of published models, generated from their configurations; `families.json` says which share a tokenizer."""
