"""Single stages and helpers as commands: a file each with `Config` (its settings) and `main(config)`."""
