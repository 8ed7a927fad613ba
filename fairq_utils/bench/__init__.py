"""Benchmarks: each measures one thing, and its figures are printed and kept."""

from fairq_utils.bench.outcome import Missing, Outcome
from fairq_utils.bench.registry import BENCHMARKS, Benchmark, Subject, benchmark, run

__all__ = ["BENCHMARKS", "Benchmark", "Missing", "Outcome", "Subject", "benchmark", "run"]
