"""Show a study's coverage, answers and every number behind them in one HTML file."""
