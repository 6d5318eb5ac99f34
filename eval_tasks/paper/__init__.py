"""The six benchmarks that the paper reports: where their questions and videos lie in the layouts that people have."""
