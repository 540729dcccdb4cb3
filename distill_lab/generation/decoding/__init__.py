"""Decoding: rows of any length in one batch, prefixes computed once, the next token of each. Used by the engine.

prefixes.py finds what prompts begin with together; flat.py decodes without padding, through attention.py and cohort.py;
padded.py serves the models that those cannot; choice.py picks tokens.
"""
