"""All that is worth knowing of a GPU, in one run of a few minutes and one folder: `python -m benchmarks.gpu_report`."""
