"""Read other people's results into the tables of a study, and find what is wrong with them."""
