"""Fitted classifiers as files."""
