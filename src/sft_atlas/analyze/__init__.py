"""Turn tidy tables into answers with intervals: what data, layers and training choices did."""
