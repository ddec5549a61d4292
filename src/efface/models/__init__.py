"""Models: a view of a pipeline, sampling, noise schedules, attention; families and files in folders of their own."""
