"""The gallery: one page that shows every figure with its question, parameters and executed notebook."""

import html
import json
from pathlib import Path
from urllib.parse import quote

import nbformat

from flowstudy.whole_file import write_whole

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --quiet: #59636e; --line: #d8dee4; --link: #0550ae; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 0 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; } a { color: var(--link); }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; }
section { border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.4rem; }
.figures { display: grid; gap: 1.2rem; margin: 1rem 0; }
@media (min-width: 60rem) { .figures { grid-template-columns: 1fr 1fr; } figure:first-child { grid-column: 1 / -1; } }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; text-align: center; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { figure { overflow-x: auto; } img { max-width: none; width: 42rem; } } /* scrolls in place */
figcaption { color: var(--quiet); font-size: .9rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0; }
td { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; vertical-align: top; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: .9rem; overflow-wrap: anywhere; }
"""


def write_gallery(out: Path, studies: list[str]) -> None:
    """Write out/index.html for the studies that have a stamp."""
    out.mkdir(parents=True, exist_ok=True)
    stamps = {study: json.loads((out / study / "stamp.json").read_text()) for study in studies}
    links = "".join(f'<a href="#{address(study)}">{text(study)}</a>' for study in studies)
    body = "".join(study_section(out, study, stamp) for study, stamp in stamps.items())
    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>flowstudy: figures</title><style>{STYLE}</style></head><body>\n"
            "<h1>flowstudy</h1><p>Will this network train at this depth, and if not, why? Every figure below was "
            f"made by <code>flowstudy figures</code>.</p><nav>{links}</nav>\n{body}</body></html>\n")
    write_whole(out / "index.html", page.encode())


def study_section(out: Path, study: str, stamp: dict) -> str:
    """What the stamp and the notebook hold is text here, never a tag."""
    title, paragraphs = question(out / study / f"{study}.ipynb")
    question_text = "".join(f"<p>{text(paragraph)}</p>" for paragraph in paragraphs)
    figures = "".join(figure(f"{address(study)}/{address(name.removesuffix('.png'))}", name.removesuffix(".png"))
                      for name in stamp["files"] if name.endswith(".png"))
    data = " · ".join(f'<a href="{address(study)}/{address(name)}">{text(name)}</a>'
                      for name in stamp["files"] if name.endswith(".parquet"))
    rows = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>"
                   for name, value in stamp["parameters"].items() if name not in ("results", "figures"))
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    notebook = f"{address(study)}/{address(study)}"
    return (f'<section id="{text(study)}"><h2>{text(title)}</h2>{question_text}<div class="figures">{figures}</div>'
            f'<p>Executed notebook: <a href="{notebook}.html">page</a>, <a href="{notebook}.ipynb">ipynb</a>. '
            f"Data: {data}.</p><details><summary>Parameters ({text(stamp['profile'])} profile)</summary><table>{rows}"
            f"</table></details><p class='quiet'>{text(stamp['seconds'])} s on {text(stamp['device'])}, "
            f"{text(stamp['finished'])}, commit {text(stamp['commit'])}; {text(versions)}</p></section>\n")


def figure(link: str, name: str) -> str:
    words = text(name.replace("_", " "))
    return (f'<figure><a href="{link}.png"><img src="{link}.png" alt="{words}" loading="lazy"></a>'
            f'<figcaption>{words} · <a href="{link}.pdf">pdf</a></figcaption></figure>')


def text(value: object) -> str:
    return html.escape(str(value))


def address(name: str) -> str:
    """A file's name in a link."""
    return quote(name, safe="")


def question(notebook: Path) -> tuple[str, list[str]]:
    """Title and paragraphs of the study's first cell."""
    lines = nbformat.read(notebook, as_version=4)["cells"][0]["source"].split("\n\n")
    return lines[0].lstrip("# "), [line.replace("\n", " ") for line in lines[1:]]
