"""Models -> scores: evaluation, statistics, comparison, speed, cost, labels, token counts."""
