"""Whatever the data, the recipe and the folder are called: the page has the same tags, and the text is shown."""

import copy
import dataclasses
from collections import Counter
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.reporting import write_report
from masksmith.reporting.tables import GroupLine, MemberLine
from masksmith.steps.report import report_facts

EVILS = (
    "<script>alert(1)</script>",
    '"></script><img src=x onerror=alert(2)>',
    "'\" onmouseover=alert(3) x='",
    "javascript:alert(4)",
    "<a href='javascript:alert(5)'>x</a>",
    "]]>--><svg/onload=alert(6)>",
    "{{ 7 * 191 }}{% raw %}",
)
UNIT = ("kind", "fold", "seed", "model", "epochs", "reason")
NUMBERS = {"expected_s": 1.0, "took_s": 1.0, "score_before": 0.5, "score_after": 0.5, "joined": True}
CHOICE = ("key", "value", "reason")


class Structure(HTMLParser):
    """Counts the tags of a page with the names of their attributes, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.tags = Counter()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag, *(name for name, _ in attrs)] += 1
        assert not {"action", "formaction"} & {name for name, _ in attrs}
        assert all(value.startswith("#") for name, value in attrs if name == "href")
        assert all(value.startswith("data:image/jpeg;") for name, value in attrs if name == "src")


def page_of(project, text):
    """Write the report with ``text`` in every place that data, recipe or folders fill."""
    opened = Project.open(project)
    facts = report_facts(opened, read_members(opened, None))
    name = min(facts.scores, key=facts.scores.get)  # the worst is in the gallery

    def renamed(values):
        return {text if key == name else key: value for key, value in values.items()}

    def renamed_store(store):
        other = copy.copy(store)
        other.entries = renamed(store.entries)
        return other

    check = {
        "layout": text,
        "facts": {text: text},
        "findings": [{"level": text, "title": text, "detail": text, "ids": [text, "b"]}],
    }
    texts = [key for key, value in facts.tuning.items() if isinstance(value, str)]
    assert {"metric", "rule_text", "found_text"} <= set(texts)
    shown = dataclasses.replace(
        facts,
        title=text,
        run=text,
        members=[text, text],
        hidden=text,
        noise=text,
        interim=True,
        plan={"units": [dict.fromkeys(UNIT, text) | NUMBERS], "choices": [dict.fromkeys(CHOICE, text)]},
        budget=text,
        check=check,
        recipe_yaml=f"# {text}\nname: {text}",
        environment=text,
        rows=[dataclasses.replace(row, id=text) if row.id == name else row for row in facts.rows],
        groups=[GroupLine(text, 3, 0.5, 0.25)],
        columns={text: ([1.0, 2.0], [2.0])},
        values={text: {text: 1.0}},
        tuning=facts.tuning | dict.fromkeys(texts, text) | {"optimism": {text: 0.5}},
        scores=renamed(facts.scores),
        preds=renamed(facts.preds),
        costs=renamed(facts.costs),
        calibration=[(text, counts) for _, counts in facts.calibration],
        members_table=[MemberLine(text, 1.0, text)],
        repeat=[(text, text)],
        images=renamed_store(facts.images),
        masks=renamed_store(facts.masks),
    )
    return write_report(project / "evil.html", shown).read_text()


@pytest.mark.slow
def test_a_report_escapes_everything(project):
    expected = Structure(page_of(project, "harmless")).tags
    assert sum(count for (tag, *_), count in expected.items() if tag == "script") > 6
    assert sum(count for (tag, *_), count in expected.items() if tag == "img") >= 1
    for evil in EVILS:
        page = page_of(project, evil)
        assert Structure(page).tags == expected, evil
        assert page.count(str(escape(evil))) >= 14, evil
