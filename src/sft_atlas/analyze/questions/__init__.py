"""Answer the questions of a study, one module each: tidy tables in, Findings and their rows out."""
