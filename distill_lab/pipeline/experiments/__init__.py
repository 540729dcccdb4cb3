"""Experiments: a question, variants of a recipe, and what the results allow to be said."""
