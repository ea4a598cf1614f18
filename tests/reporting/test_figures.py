import json
import re

import pytest

from masksmith.reporting import figures

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def charts(text):
    events = [{"fold": 0, "curve": text, "split": "fold", "name": "score", "epoch": 1, "value": 0.5}]
    return {
        "learning": figures.learning_curves(events, "fold", "score", text, text),
        "threshold": figures.threshold_curve([(0.5, 0.4), (0.6, 0.5)], metric=text, chosen=0.6, plain=0.4),
        "coverage": figures.coverage_histogram({text: [0.0, 0.2]}),
        "scores": figures.score_histogram([0.1, 0.9], metric=text),
    }


@pytest.mark.parametrize("name", ["learning", "threshold", "coverage", "scores"])
def test_texts_cannot_end_the_script_that_holds_them(name):
    plain, evil = charts("harmless")[name], charts(EVIL)[name]
    assert "harmless" in plain
    for sign in ("<script", "</script", "<img"):
        assert evil.count(sign) == plain.count(sign), sign
    texts = re.findall(r'"(?:[^"\\]|\\.)*"', evil[evil.index("Plotly.newPlot") :])
    assert any(EVIL in json.loads(text) for text in texts)  # it is still the same text


def test_rates_are_marked_where_they_lie_on_the_logarithmic_axis():
    page = figures.lr_curve([1e-4, 1e-2, 1.0], [1.0, 0.5, 2.0], suggestion=0.01, peak=0.001)
    start = page.index("[{", page.rindex("Plotly.newPlot"))
    _, end = json.JSONDecoder().raw_decode(page[start:])
    layout, _ = json.JSONDecoder().raw_decode(page[page.index("{", start + end) :])
    marks = {mark["text"]: mark["x"] for mark in layout["annotations"]}
    assert marks == {"suggested 0.01": -2.0, "recipe 0.001": -3.0}
    assert [line["x0"] for line in layout["shapes"]] == [0.01, 0.001]
