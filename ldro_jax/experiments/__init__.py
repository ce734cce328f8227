"""Experiments: problems trained with several methods and seeds, and reported."""
