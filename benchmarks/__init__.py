"""Side by side with what a user would pick instead; figures in RESULTS.md."""
