"""HTML and SVG as text in which nothing that came from outside can be markup."""

import html
import unicodedata


class Html(str):
    """Text that is markup already. Any other text is escaped where it is put into markup."""

    __slots__ = ()


Attribute = str | int | float


def element(tag: str, *inside: str, **attributes: Attribute) -> Html:
    """`<tag attribute="...">inside</tag>`; of attributes `class_` is class, and `stroke_width` stroke-width."""
    written = "".join(f' {_name(key)}="{_escaped(_text(value))}"' for key, value in attributes.items())
    return Html(f"<{tag}{written}>{joined(*inside)}</{tag}>")


def joined(*parts: str) -> Html:
    return Html("".join(part if isinstance(part, Html) else _escaped(part) for part in parts))


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: Attribute) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return html.escape(cleaned(text))


def cleaned(text: str) -> str:
    """What no file or no page may hold becomes the sign for that."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_no_text(letter) else letter for letter in text)


def _is_no_text(letter: str) -> bool:
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs")
