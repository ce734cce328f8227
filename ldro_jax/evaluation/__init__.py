"""Metrics of trained models, per task."""
