"""Benchmarks for lmms-eval, installed as `dynimg_plugin.eval_tasks`: a folder holds one benchmark."""
