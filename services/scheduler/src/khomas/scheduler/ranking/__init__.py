"""How good a place is for a job: pure functions, chosen by name among the plug-ins."""

from khomas.scheduler.ranking.interface import Facts, Rank, Ranking
from khomas.scheduler.ranking.plugins import load_ranking

__all__ = ["Facts", "Rank", "Ranking", "load_ranking"]
