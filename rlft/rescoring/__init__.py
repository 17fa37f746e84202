"""Rewards looked at by themselves: completions from a file, or those that a run has kept, scored again."""
