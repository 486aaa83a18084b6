"""The report: one file that needs nothing else, with the facts in it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from blockpunch.measure.quality import Comparison
from blockpunch.report import EngineTime, LayerFacts, MappingFacts, ReportFacts, render


def facts(**changes) -> ReportFacts:
    layers = [LayerFacts(f"block.{i}", "conv", (8, 4, 3, 3), "block-punched:8x4" if i else "dense", 2.0 if i else 1.0,
                         4_000_000, 2_000_000 if i else 4_000_000, 0.4, 0.25 if i else 0.4, 0.6, "8 filters", "<why>")
              for i in range(6)]
    engines = [EngineTime("OpenVINO", "peer", 5.0, 4.9, 0.02, 2e-6, "1"),
               EngineTime("ORT", "peer", 6.0, 5.9, 0.01, 0.0, "2"),
               EngineTime("ours, dense", "dense", 4.0, 3.9, 0.01, 1e-6, "3"),
               EngineTime("ours", "pruned", 2.0, 1.9, 0.01, None, "3")]
    machine = {"cpu": "A & B", "isa": "avx2", "system": "Linux", "cores": 2, "compiler": "gcc", "peak_gmacs": 60.0}
    original = ReportFacts(
        model="net <1>", target="x86-64-v3", threads=1, created="today", version="0.1.0", plan="a plan",
        engines=engines, layers=layers, weights=1000, kept_weights=500, dense_bytes=1 << 20, pruned_bytes=1 << 19,
        machine=machine, comparison=Comparison(100, "photos", 0.8, 0.79, 0.95, 3, 2), stages={"bench": 3.0})
    return replace(original, **changes)


class Checker(HTMLParser):
    """Collects what the page would load, and checks that tags are closed."""

    VOID = frozenset({"meta", "link", "br", "img", "hr"})

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data") and value
                       and not value.startswith("#")]
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page() -> Checker:
    checker = Checker()
    checker.feed(render(facts()))
    return checker


def test_the_page_is_whole_and_loads_nothing(page):
    assert page.open == [] and page.loads == []
    text = render(facts())
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 3


def test_headlines_are_the_ratios(page):
    assert facts().peer_gain == 2.5 and facts().own_gain == 2.0
    for word in ("2.50×", "2.00×", "79.0 %", "-1.0 points", "OpenVINO", "net <1>", "A & B", "<why>", "1 of 6 layers"):
        assert word in page.text, word


def test_agreement_is_never_called_accuracy():
    text = render(facts(comparison=Comparison(50, "crops", None, 0.9, 0.9)))
    assert "This is agreement, not accuracy" in text and "top-1" not in text


def test_without_times_and_images():
    text = render(facts(engines=[], comparison=None))
    assert "Not measured" in text and text.count("<svg") == 2


def mapped(**changes):
    found = MappingFacts("exact", "1.5 x", 4.1, 2.05, 0.3, 0.02, [(1.0, 0.9), (2.05, 0.02), (4.1, 0.0)],
                         [(2.05, 0.02, 1.25, 0.4), (3.0, 0.01, -0.5, 0.3)], {"block.1": 0.26})
    whole = facts()
    layers = [replace(layer, predicted_ms=0.26) for layer in whole.layers]
    return replace(whole, mapping=replace(found, **changes), layers=layers)


def test_a_mapping_shows_its_frontier_and_its_predictions():
    text = render(mapped())
    assert text.count("<svg") == 5 and "chosen: 2.00×" in text and "−1.2" in text and "+0.5" in text
    assert "predicted 2.05 ms, measured 2.00 ms (+2.5 %)" in text and "points of top-1 accuracy" in text
    rules = render(mapped(method="rules", cost=None, frontier=[], trials=[]))
    assert rules.count("<svg") == 4 and "By rules" in rules and "Circles" not in rules


@pytest.mark.parametrize("original", [facts(), mapped()])
def test_facts_survive_json(original):
    assert ReportFacts.from_json(json.loads(json.dumps(original.to_json()))) == original
