"""Work on the folder of a run: training, evaluation, comparison, sweeps, reports and model files."""
