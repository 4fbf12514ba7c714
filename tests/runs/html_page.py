"""A parser of report pages for the tests in this folder."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, references, text, table rows and definitions of a page; fails on a tag closed in the wrong order."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text()
        self.open, self.tags, self.references, self.text = [], [], [], ""
        self.rows, self.definitions = [], []
        self.feed(self.source)

    @property
    def pairs(self):
        return dict(zip(self.definitions[::2], self.definitions[1::2], strict=True))

    @property
    def stands_alone(self):
        """Return True if every tag is closed, nothing outside the page is referenced and there is no script."""
        inside = all(reference.startswith(("data:", "#")) for reference in self.references)
        return self.open == [] and inside and "script" not in self.tags

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("dt", "dd"):
            self.definitions.append("")
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if {"dt", "dd"} & set(self.open):
            self.definitions[-1] += data
