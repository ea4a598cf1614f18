import base64
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.reporting import figures

values = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def charts(text):
    events = [{"fold": 0, "curve": text, "split": "fold", "name": "score", "epoch": 1, "value": 0.5}]
    return {
        "learning": figures.learning_curves(events, "fold", "score", text, text),
        "threshold": figures.threshold_curve(
            [(0.5, 0.4), (0.6, 0.5)], metric=text, chosen=0.6, plain=0.4, higher_is_better=True
        ),
        "coverage": figures.coverage_histogram({text: [0.0, 0.2]}),
        "scores": figures.score_histogram([0.1, 0.9], metric=text),
        "column": figures.value_distribution(text, [1.0, 2.0], [2.0]),
    }


def test_texts_cannot_end_the_script_that_holds_them():
    for plain, evil in zip(charts("harmless").values(), charts(EVIL).values(), strict=True):
        assert "harmless" in plain
        for sign in ("<script", "</script", "<img"):
            assert evil.count(sign) == plain.count(sign), sign
        texts = re.findall(r'"(?:[^"\\]|\\.)*"', evil[evil.index("Plotly.newPlot") :])
        assert any(EVIL in json.loads(text) for text in texts)  # it is still the same text


def drawn(html):
    """Return (traces, layout) of a chart."""
    start = html.index("[{", html.rindex("Plotly.newPlot"))
    traces, end = json.JSONDecoder().raw_decode(html[start:])
    layout, _ = json.JSONDecoder().raw_decode(html[html.index("{", start + end) :])
    return traces, layout


def test_the_best_threshold_is_marked():
    curve = [(0.4, 0.1), (0.5, 0.5), (0.6, 0.7), (0.7, 0.7)]
    for higher, best in ((True, (0.6, 0.7)), (False, (0.4, 0.1))):
        options = {"metric": "m", "chosen": 0.5, "plain": 0.5, "higher_is_better": higher}
        traces, layout = drawn(figures.threshold_curve(curve, **options))
        assert (*traces[1]["x"], *traces[1]["y"]) == best
        assert {"plain 0.5", "in use 0.50"} == {note["text"] for note in layout["annotations"]}
        traces, _ = drawn(figures.threshold_curve([(0.5, 0.4)], **options))  # one alone is drawn too
        assert traces[0]["mode"] == "lines+markers"
        assert traces[1]["text"] == ["best 0.4000 at 0.50"]


def test_stages_are_marked_where_they_begin():
    def event(epoch, name, value, curve="fold 0"):
        return {"curve": curve, "split": "train", "name": name, "epoch": epoch, "value": value}

    stages = [event(epoch, "stage", stage) for epoch, stage in [(1, 0), (2, 0), (3, 1), (4, 2)]]
    losses = [event(epoch, "loss", 1 / epoch) for epoch in range(1, 5)]
    other = [event(epoch, "stage", stage, "fold 1") for epoch, stage in [(1, 0), (2, 0), (3, 0), (4, 1)]]
    _, layout = drawn(figures.learning_curves([*stages, *losses, *other], "train", "loss", "t", "a"))
    marks = [
        (line["x0"], note["text"]) for line, note in zip(layout["shapes"], layout["annotations"], strict=True)
    ]
    assert marks == [(2.5, "stage 2"), (3.5, "stage 2"), (3.5, "stage 3")]
    _, plain = drawn(figures.learning_curves(losses, "train", "loss", "t", "a"))  # an old log has no stages
    assert "shapes" not in plain


def test_the_loss_of_held_out_images_is_a_broken_line_where_it_is_logged():
    losses = [("fold 0", "train", "loss"), ("fold 1", "train", "loss"), ("fold 1", "fold", "val_loss")]
    events = [
        {"curve": curve, "split": split, "name": name, "epoch": epoch, "value": 1 / epoch}
        for curve, split, name in losses
        for epoch in (1, 2)
    ]
    chart = figures.learning_curves(
        events, "train", "loss", "t", "a", dashed=("fold", "val_loss", "held-out images")
    )
    traces, _ = drawn(chart)
    assert [(one["name"], one["line"].get("dash")) for one in traces] == [
        ("fold 0", None),
        ("fold 1", None),
        ("fold 1, held-out images", "dash"),
    ]
    assert traces[1]["line"]["color"] == traces[2]["line"]["color"] != traces[0]["line"]["color"]


def test_empty_masks_are_counted_and_not_drawn():
    traces, layout = drawn(figures.coverage_distribution([0.0, 0.0, 0.0, 0.31]))
    assert layout["title"]["text"] == "training masks; 75.0% are empty"
    assert layout["xaxis"]["title"]["text"] == "foreground of the 1 others"
    counts = np.frombuffer(base64.b64decode(traces[0]["y"]["bdata"]), traces[0]["y"]["dtype"])
    assert counts.sum() == 1
    figures.coverage_distribution([])
    figures.coverage_distribution([0.0])


def test_columns_are_compared_where_there_is_a_test_set():
    traces, layout = drawn(figures.value_distribution("z", [1.0, 2.0, 3.0], [3.0]))
    assert [trace["name"] for trace in traces] == ["training (3)", "test (1)"]
    assert layout["title"]["text"] == "z: largest gap of the cumulative shares 0.667"
    traces, layout = drawn(figures.value_distribution("z", [1.0, 1.0], []))
    assert [trace["name"] for trace in traces] == ["training (2)"]
    assert layout["title"]["text"] == "z"


def test_every_value_of_a_column_is_in_a_bar():
    for column in (
        [5.0],
        [5.0, 5.0],
        [1e17, 1e17 + 16.0],
        [-1.5e308, 1.5e308],
        [0.0, 5e-324],
        [float(i) for i in range(99)],
    ):
        traces, _ = drawn(figures.value_distribution("z", column, []))
        shares = traces[0]["y"]
        if isinstance(shares, dict):
            shares = np.frombuffer(base64.b64decode(shares["bdata"]), shares["dtype"])
        assert sum(shares) == pytest.approx(1)


@given(values, values)
def test_the_gap_is_that_of_kolmogorov_and_smirnov(one, other):
    gaps = [
        abs(sum(value <= at for value in one) / len(one) - sum(value <= at for value in other) / len(other))
        for at in {*one, *other}
    ]
    assert figures.cdf_gap(one, other) == pytest.approx(max(gaps))


def test_rates_are_marked_where_they_lie_on_the_logarithmic_axis():
    page = figures.lr_curve([1e-4, 1e-2, 1.0], [1.0, 0.5, 2.0], suggestion=0.01, peak=0.001)
    _, layout = drawn(page)
    marks = {mark["text"]: mark["x"] for mark in layout["annotations"]}
    assert marks == {"suggested 0.01": -2.0, "recipe 0.001": -3.0}
    assert [line["x0"] for line in layout["shapes"]] == [0.01, 0.001]
