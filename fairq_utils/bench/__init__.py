"""Benchmarks: each measures one thing, and its figures are printed and kept."""

from fairq_utils.bench.outcome import NotOffered, Outcome
from fairq_utils.bench.registry import BENCHMARKS, Subject, benchmark, run

__all__ = ["BENCHMARKS", "NotOffered", "Outcome", "Subject", "benchmark", "run"]
