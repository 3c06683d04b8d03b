"""`gossamer train`: the main job, from data to a smaller dense network and a report."""
