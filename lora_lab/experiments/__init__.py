"""Experiments that take too long for a lesson. Each is one command and writes one file in data/measurements."""
