"""Render the sections of a report as Markdown, HTML and reStructuredText."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

STYLE = """body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;font-size:.85em}td,th{padding:.2em .6em;border-bottom:1px solid #ccc;
text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"""


@dataclass(frozen=True)
class Section:
    """A title and a text, optionally with a bullet list, a table and a picture.

    ``long`` sections are folded in HTML and left out of the documentation.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: Path | None = None
    long: bool = False
    bullets: tuple[str, ...] = ()


def cells(table):
    """Return the header and the rows of a table as lists of str.

    A named index, such as that of the methods, becomes the first column.
    """
    if table.index.name:
        table = table.reset_index()
    return [str(c) for c in table.columns], [[str(v) for v in line] for line in table.to_numpy()]


def markdown(title, sections):
    """Return the report as Markdown, with links to the picture files."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.text, _list(section.bullets)]
        if section.table is not None:
            header, lines = cells(section.table)
            rows = [header, ["---"] * len(header), *lines]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
        if section.picture is not None:
            parts.append(f"![{section.title}]({section.picture.name})")
    return "\n\n".join(part for part in parts if part) + "\n"


def html(title, sections):
    """Return the report as one self-contained HTML page."""
    parts = [f"<!DOCTYPE html><meta charset='utf-8'><title>{escape(title)}</title>"]
    parts.append(f"<style>{STYLE}</style><h1>{escape(title)}</h1>")
    for section in sections:
        body = f"<p>{escape(section.text)}</p>" if section.text else ""
        if section.bullets:
            items = "".join(f"<li>{escape(item)}</li>" for item in section.bullets)
            body += f"<ul>{items}</ul>"
        if section.table is not None:
            body += _html_table(section.table)
        if section.picture is not None:
            image = base64.b64encode(section.picture.read_bytes()).decode()
            name = escape(section.title)
            body += f"<img alt='{name}' src='data:image/png;base64,{image}'>"
        if section.long:
            body = f"<details><summary>Show</summary>{body}</details>"
        parts.append(f"<h2>{escape(section.title)}</h2>{body}")
    return "\n".join(parts) + "\n"


def _list(bullets):
    """Return a bullet list, which is the same in Markdown and reStructuredText."""
    return "\n".join(f"- {item}" for item in bullets)


def _html_table(table):
    header, lines = cells(table)

    def row(values, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(v)}</{tag}>" for v in values) + "</tr>"

    body = "\n".join(row(line, "td") for line in lines)
    return f"<table><thead>{row(header, 'th')}</thead>\n<tbody>{body}</tbody></table>"


def rst(title, sections, pictures):
    """Return the report as reStructuredText, with pictures in the folder `pictures`."""
    parts = [f"{title}\n{'-' * len(title)}"]
    for section in sections:
        if section.long:
            continue
        parts += [f"{section.title}\n{'~' * len(section.title)}"]
        parts += [text.replace("`", "``") for text in (section.text, _list(section.bullets))]
        if section.table is not None:
            header, lines = cells(section.table)
            # Quotes keep commas within cells; escapes make markup characters literal.
            rows = (", ".join(f'"{_plain(v)}"' for v in line) for line in (header, *lines))
            body = "\n".join(f"   {row}" for row in rows)
            parts.append(f".. csv-table::\n   :header-rows: 1\n\n{body}")
        if section.picture is not None:
            target = f"{pictures}/{section.picture.name}"
            parts.append(f".. image:: {target}\n   :alt: {section.title}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text):
    for character in "\\*`|_":
        text = text.replace(character, f"\\{character}")
    return text.replace('"', '""')
