"""Decode sequences of any length in one batch, computing shared prefixes once. Used by the engine transformers.

prefixes.py finds shared prefixes of prompts; flat.py decodes without padding, using attention.py and batch_slab.py;
padded.py is for models that flat.py does not support; sampler.py picks tokens.
"""
