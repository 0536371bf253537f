"""Finds a ranking by its name."""

from khomas.kit import plugins
from khomas.kit.config import ConfigError
from khomas.kit.filtering.fields import nearest
from khomas.scheduler.ranking.interface import Ranking

RANKINGS = "khomas.scheduler.rankings"


def load_ranking(name: str) -> Ranking:
    """Load the plug-in of this name. Raises `ConfigError`."""
    found = plugins.installed(RANKINGS)
    if name not in found:
        close = ", ".join(nearest(name, sorted(found)) or sorted(found))
        raise ConfigError(f"ranking: there is no ranking {name}, only {close}")
    ranking: Ranking = plugins.load(found[name])
    return ranking
