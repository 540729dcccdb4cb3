"""What a person reads at the end: `page.py` writes a run's HTML page, `figure.py` its result as a picture."""
