"""Before the first stage: what fits this machine, which method is used, and what would fail later."""
