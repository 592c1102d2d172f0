"""Read a study file and say what it implies: cells, trajectories, jobs, cost."""
