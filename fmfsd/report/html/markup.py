"""HTML and SVG elements; text from outside is escaped."""

import html
import unicodedata


class Html(str):
    """Text that is already markup. Any other text is escaped when it is put into markup."""

    __slots__ = ()


Attribute = str | int | float


def element(tag: str, *inside: str, **attributes: Attribute) -> Html:
    """Return `<tag attribute="...">inside</tag>`. The attribute `class_` becomes class, `stroke_width` stroke-width."""
    pairs = "".join(f' {_name(key)}="{_escape(_text(value))}"' for key, value in attributes.items())
    return Html(f"<{tag}{pairs}>{join_markup(*inside)}</{tag}>")


def join_markup(*parts: str) -> Html:
    """Join markup and text; text is escaped."""
    return Html("".join(part if isinstance(part, Html) else _escape(part) for part in parts))


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: Attribute) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return html.escape(replace_control_characters(text))


def replace_control_characters(text: str) -> str:
    """Replace control characters and surrogates, which are not valid in a page."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_invalid(letter) else letter for letter in text)


def _is_invalid(letter: str) -> bool:
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs")
