"""Models: views of pipelines, sampling, noise schedules, attention, model families and files."""
