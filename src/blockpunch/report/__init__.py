"""What a person reads at the end: one self-contained HTML file with pictures and tables."""

from blockpunch.report.facts import EngineTime, LayerFacts, MappingFacts, ReportFacts
from blockpunch.report.html import render

__all__ = ["EngineTime", "LayerFacts", "MappingFacts", "ReportFacts", "render"]
