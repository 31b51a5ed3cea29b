"""Learners: settings that fit. Each is one file, and none imports another or a task."""
