"""What a browser would make of a page: its elements, whether they nest, what it would fetch."""

from html.parser import HTMLParser

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Parses a page; `errors` holds what is not well formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.errors: list[str] = []
        self.style = self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"<{tag}> never closed" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        self.errors += [f"<{tag}> has {n} twice" for n in set(names) if names.count(n) > 1]
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID or not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing, at {self.getpos()}")

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def addresses(self) -> list[str]:
        """Everything a browser would load or link to."""
        keys = ("src", "href", "srcset", "poster", "data", "action", "background")
        found = [v for _, attributes in self.elements for k, v in attributes.items() if k in keys]
        return [address or "" for address in found]
