"""Know the estimators of a grid's statistics: intervals, tests and models of crossed factors."""
