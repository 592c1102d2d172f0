"""Score a model on benchmarks: questions, answers, verdicts, records."""
