"""Read a page as a browser does, without one: elements, attributes and the text of every table."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a test asks about.

    Attributes:
        elements: (tag, attributes) in order.
        tables: rows of cell texts of each table.
        text: all text outside of script and style.
        scripts: content of each script element.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.texts.append(data)
            if "td" in self._inside or "th" in self._inside:
                self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def table(self, first_head: str, second_head: str) -> dict[str, list[str]]:
        """Rows of the table whose first two column heads are these, by their first cell."""
        for rows in self.tables:
            if [cell.strip() for cell in rows[0][:2]] == [first_head, second_head]:
                return {row[0].strip(): [" ".join(cell.split()) for cell in row[1:]] for row in rows[1:]}
        raise AssertionError(f"no table with the columns {first_head!r}, {second_head!r}")

    def facts(self) -> dict[str, str]:
        """All tables without a head as one mapping."""
        rows = [row for rows in self.tables for row in rows if len(row) == 2]
        return {row[0].strip(): row[1].strip() for row in rows}
