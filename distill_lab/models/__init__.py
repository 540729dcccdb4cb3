"""Models by name: loading, identity, precision, generation settings, tied heads. Start at `loading.load_model`."""
