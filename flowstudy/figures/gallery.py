"""One page that shows every figure with its question and parameters: of a run, and the gallery that git keeps."""

import html
import io
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import nbformat
import pandas as pd

from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.whole_file import listed, read_whole, remove, write_whole

from .stamp import read_stamp

# The table that a study's figures are drawn from, where it does not bear the study's name.
TABLES = {"depth_vs_gradient": "slopes", "highway_theory": "body_moments", "jacobian_spectra": "statistics",
          "shattered_gradients": "gradient_correlation", "spectra_through_training": "statistics"}
SETTINGS = (*CELL_FIELDS, "block", "parameters")  # columns by which the rows of a net's seeds are grouped
PLACES = ("layer", "unit", "class", "epoch", "step", "sample", "rank", "statistic", "readout", "lag", "angle")
LONG = 1000

QUESTIONS = {  # headings of the gallery and the studies under each; studies under no heading come last
    "Does it train at this depth?": ("loss_vs_depth", "best_settings", "trainability_map", "will_it_train",
                                     "mnist_conv", "cifar_conv"),
    "What does depth do to gradients?": ("depth_vs_gradient", "shattered_gradients"),
    "What does depth do to the Jacobian's singular values?": ("jacobian_spectra", "highway_theory",
                                                              "spectra_through_training"),
    "What do the gates of a trained net do?": ("gate_routing", "lesions"),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #59636e; --line: #d8dee4; --link: #0550ae; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --quiet: #a5adb6; --line: #3d444d; --link: #79b8ff; --page: #0d1117; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
       font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 0 0 .4rem; }
nav h2 { font-size: 1rem; margin: 1rem 0 .2rem; } nav ul { margin: 0; padding-left: 1.2rem; }
nav li { margin: .15rem 0; }
p { max-width: 46rem; margin: .4rem 0; } a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.4rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
             border-radius: 6px; padding: .5rem; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .3rem; }
.words { display: none; color: var(--ink); }
@media (max-width: 40rem) { .words { display: block; } } /* where the picture's own words are too small to read */
details { margin: .4rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; font-size: .88rem; margin: .4rem 0; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; vertical-align: top; text-align: left;
         font-weight: normal; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: .9rem; overflow-wrap: anywhere; }
"""


def write_page(out: Path, studies: list[str]) -> None:
    """Write out/index.html for the studies of a run: their figures, tables and executed notebooks lie beside it."""
    shown, sections = {}, {}
    for study in studies:
        stamp = read_stamp(out / study)
        shown[study] = {name: words_of(out / study / f"{name}.svg") for name in pictures(stamp)}
        sections[study] = section(study, out / study / f"{study}.ipynb", stamp, shown[study], of_a_run(study, stamp),
                                  kinds=("png", "pdf"))
    write_index(out, shown, sections)


def keep_gallery(runs: Path, gallery: Path, studies: list[str]) -> None:
    """Copy the pictures and one small table per study into the folder that git keeps, and write gallery/index.html.

    Pictures that a study no longer draws are removed last, so that a disk that fills up meanwhile loses nothing.
    """
    shown, sections, kept = {}, {}, {}
    for study in studies:
        stamp = read_stamp(runs / study)
        table = f"{study}.csv"
        shown[study] = {name: words_of(runs / study / f"{name}.svg") for name in pictures(stamp)}
        kept[study] = {table, *(f"{name}.svg" for name in shown[study])}
        for name in shown[study]:
            write_whole(gallery / study / f"{name}.svg", read_whole(runs / study / f"{name}.svg"))
        frame = pd.read_parquet(io.BytesIO(read_whole(runs / study / f"{TABLES.get(study, study)}.parquet")))
        write_whole(gallery / study / table, small_table(frame).to_csv(index=False, float_format="%.4g").encode())
        here = address(study)
        links = (f'Notebook: <a href="../../studies/{here}.ipynb">{text(study)}.ipynb</a>. '
                 f'Data, medians over seeds: <a href="{here}/{address(table)}">{text(table)}</a>.')
        sections[study] = section(study, runs / study / f"{study}.ipynb", stamp, shown[study], links)
    write_index(gallery, shown, sections)
    for study, names in kept.items():
        for path in listed(gallery / study, ""):
            if path.name not in names:
                remove(path)


Words = tuple[str, str]  # a picture's message and its caption


def words_of(picture: Path) -> Words:
    """The message and the caption that `plots.save` has put into a picture; the file's name where it holds none."""
    found = {"title": "", "description": ""}
    if picture.exists():
        for _, element in ElementTree.iterparse(io.BytesIO(read_whole(picture))):
            name = element.tag.rpartition("}")[2]
            if found.get(name) == "":
                found[name] = element.text or ""
            if name == "metadata":  # both stand before the drawing
                break
    return found["title"] or picture.stem.replace("_", " "), found["description"]


def small_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table behind a figure, made small enough for git.

    Where a grid has several seeds, the rows of one setting become their median.  A table with an epoch column and more
    than `LONG` rows keeps its last epochs only.  Columns with one value in all rows are dropped; the page lists them
    among the study's parameters.
    """
    axes = [name for name in frame.columns if name in SETTINGS or name in PLACES]
    of_setting = [name for name in axes if name != "seed"]
    if frame.duplicated(of_setting).any():
        axes = of_setting
        numbers = [name for name in frame.select_dtypes("number").columns if name not in [*axes, "seed"]]
        frame = frame.groupby(axes, dropna=False, sort=False)[numbers].median().reset_index()
    if "epoch" in frame and len(frame) > LONG:
        others = [name for name in axes if name != "epoch"]
        frame = frame.loc[frame.groupby(others, dropna=False)["epoch"].idxmax().sort_values()]
    return frame.drop(columns="cell", errors="ignore").loc[:, lambda rows: rows.nunique(dropna=False) > 1]


def write_index(folder: Path, shown: dict[str, dict[str, Words]], sections: dict[str, str]) -> None:
    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>flowstudy: figures</title><style>{STYLE}</style></head><body><main>\n"
            "<h1>flowstudy</h1><p>Will this network train at this depth, and if not, why? Every figure below was "
            f"made by <code>flowstudy figures</code>.</p>\n{by_question(shown)}\n"
            f"{''.join(sections.values())}</main></body></html>\n")
    write_whole(folder / "index.html", page.encode())


def by_question(shown: dict[str, dict[str, Words]]) -> str:
    """Every figure's message under the question that it answers, each a link to the figure."""
    asked = {study for studies in QUESTIONS.values() for study in studies}
    answers = QUESTIONS | {"Other studies": tuple(study for study in shown if study not in asked)}
    parts = ""
    for asking, studies in answers.items():
        items = "".join(f'<li><a href="#{anchor(study, name)}">{text(message)}</a></li>'
                        for study in studies for name, (message, _) in shown.get(study, {}).items())
        parts += f"<h2>{asking}</h2><ul>{items}</ul>" if items else ""
    return f'<nav aria-label="Figures by question">{parts}</nav>'


def section(study: str, executed: Path, stamp: dict, shown: dict[str, Words], links: str,
            kinds: tuple[str, ...] = ()) -> str:
    """A study's part of the page: question, figures, `links` to the rest, parameters, and where it all comes from.

    What the stamp and the notebook hold is text here, never a tag.

    Args:
        shown: the study's pictures, each with its message and its caption.
        kinds: of file that each picture is there in besides SVG.
    """
    title, paragraphs = question(executed)
    words = "".join(f"<p>{text(paragraph)}</p>" for paragraph in paragraphs)
    figures = "".join(figure(study, name, *said, kinds) for name, said in shown.items())
    rows = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
                   for name, value in stamp["parameters"].items() if name not in ("results", "figures"))
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    return (f'<section id="{address(study)}"><h2>{text(title)}</h2>{words}{figures}'
            f"<p>{links}</p><details><summary>Parameters ({text(stamp['profile'])} profile)</summary><table>{rows}"
            f"</table></details><p class='quiet'>{text(stamp['seconds'])} s on {text(stamp['device'])}, "
            f"{text(stamp['finished'])}, commit {text(stamp['commit'])}; {text(versions)}</p></section>\n")


def figure(study: str, name: str, message: str, caption: str, kinds: tuple[str, ...]) -> str:
    link = f"{address(study)}/{address(name)}"
    others = "".join(f' · <a href="{link}.{kind}">{kind}</a>' for kind in kinds)
    return (f'<figure id="{anchor(study, name)}"><a href="{link}.svg"><img src="{link}.svg" alt="{text(message)}" '
            f'loading="lazy"></a><figcaption><span class="words">{text(message)} {text(caption)}</span>'
            f"{text(name.replace('_', ' '))}{others}</figcaption></figure>")


def anchor(study: str, name: str) -> str:
    return address(f"{study}-{name}")


def text(value: object) -> str:
    return html.escape(str(value))


def address(name: str) -> str:
    """A file's name in a link."""
    return quote(name, safe="")


def of_a_run(study: str, stamp: dict) -> str:
    here = address(study)
    data = " · ".join(f'<a href="{here}/{address(name)}">{text(name)}</a>'
                      for name in stamp["files"] if name.endswith((".parquet", ".csv")))
    return (f'Executed notebook: <a href="{here}/{here}.html">page</a>, <a href="{here}/{here}.ipynb">ipynb</a>. '
            f"Data: {data}.")


def pictures(stamp: dict) -> list[str]:
    return [name.removesuffix(".svg") for name in stamp["files"] if name.endswith(".svg")]


def question(notebook: Path) -> tuple[str, list[str]]:
    """Title and paragraphs of the study's first cell."""
    lines = nbformat.reads(read_whole(notebook).decode(), as_version=4)["cells"][0]["source"].split("\n\n")
    return lines[0].lstrip("# "), [line.replace("\n", " ") for line in lines[1:]]
