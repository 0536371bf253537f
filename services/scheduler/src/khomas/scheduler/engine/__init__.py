"""Moves jobs from submission to their end: releases, hands over, looks, finishes, tries again."""

from khomas.scheduler.engine.engine import Engine

__all__ = ["Engine"]
