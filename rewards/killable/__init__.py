"""Judging what a model wrote in a process that may be killed. Knows nothing about what is judged."""
