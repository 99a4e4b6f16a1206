"""One page that shows every figure with its question and parameters: of a run, and the gallery that git keeps."""

import html
import io
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd

from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.whole_file import listed, read_whole, remove, write_whole

from .stamp import read_stamp

# The table that a study's figures are drawn from, where it does not bear the study's name.
TABLES = {"depth_vs_gradient": "slopes", "highway_theory": "body_moments", "jacobian_spectra": "statistics",
          "shattered_gradients": "gradient_correlation", "spectra_through_training": "statistics"}
SETTINGS = (*CELL_FIELDS, "block", "parameters")  # of a net, by which the rows of its seeds are put together
PLACES = ("layer", "unit", "class", "epoch", "step", "sample", "rank", "statistic", "readout", "lag", "angle")
LONG = 1000

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


def write_page(out: Path, studies: list[str]) -> None:
    """Write out/index.html for the studies of a run: their figures, tables and executed notebooks lie beside it."""
    stamps = {study: read_stamp(out / study) for study in studies}
    write_index(out, {study: section(study, out / study / f"{study}.ipynb", stamp, of_a_run(study, stamp), pdf=True)
                      for study, stamp in stamps.items()})


def keep_gallery(runs: Path, gallery: Path, studies: list[str]) -> None:
    """Copy what git keeps of the runs' figures, and write gallery/index.html: pictures, and one small table a study.

    What a study no longer draws goes last: a disk that is full on the way leaves each file as it was or as it is now.
    """
    sections, kept = {}, {}
    for study in studies:
        stamp = read_stamp(runs / study)
        table = f"{study}.csv"
        kept[study] = {table, *(f"{name}.png" for name in pictures(stamp))}
        for name in pictures(stamp):
            write_whole(gallery / study / f"{name}.png", read_whole(runs / study / f"{name}.png"))
        frame = pd.read_parquet(io.BytesIO(read_whole(runs / study / f"{TABLES.get(study, study)}.parquet")))
        write_whole(gallery / study / table, small_table(frame).to_csv(index=False, float_format="%.4g").encode())
        here = address(study)
        links = (f'Notebook: <a href="../../studies/{here}.ipynb">{text(study)}.ipynb</a>. '
                 f'Data, medians over seeds: <a href="{here}/{address(table)}">{text(table)}</a>.')
        sections[study] = section(study, runs / study / f"{study}.ipynb", stamp, links, pdf=False)
    write_index(gallery, sections)
    for study, names in kept.items():
        for path in listed(gallery / study, ""):
            if path.name not in names:
                remove(path)


def small_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What a figure shows, small enough for git.

    Medians over the nets of each setting where a grid has several seeds; of more than `LONG` rows with an epoch those of
    the last epochs; no columns that say the same in every row, which the page has among the study's parameters.
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


def write_index(folder: Path, sections: dict[str, str]) -> None:
    links = "".join(f'<a href="#{address(study)}">{text(study)}</a>' for study in sections)
    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>flowstudy: figures</title><style>{STYLE}</style></head><body>\n"
            "<h1>flowstudy</h1><p>Will this network train at this depth, and if not, why? Every figure below was "
            f"made by <code>flowstudy figures</code>.</p><nav>{links}</nav>\n{''.join(sections.values())}</body></html>\n")
    write_whole(folder / "index.html", page.encode())


def section(study: str, executed: Path, stamp: dict, links: str, *, pdf: bool) -> str:
    """A study's part of the page: question, figures, `links` to the rest, parameters, and where it all comes from.

    What the stamp and the notebook hold is text here, never a tag.
    """
    title, paragraphs = question(executed)
    words = "".join(f"<p>{text(paragraph)}</p>" for paragraph in paragraphs)
    figures = "".join(figure(f"{address(study)}/{address(name)}", name, pdf=pdf) for name in pictures(stamp))
    rows = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>"
                   for name, value in stamp["parameters"].items() if name not in ("results", "figures"))
    versions = ", ".join(f"{name} {number}" for name, number in stamp["versions"].items())
    return (f'<section id="{text(study)}"><h2>{text(title)}</h2>{words}<div class="figures">{figures}</div>'
            f"<p>{links}</p><details><summary>Parameters ({text(stamp['profile'])} profile)</summary><table>{rows}"
            f"</table></details><p class='quiet'>{text(stamp['seconds'])} s on {text(stamp['device'])}, "
            f"{text(stamp['finished'])}, commit {text(stamp['commit'])}; {text(versions)}</p></section>\n")


def figure(link: str, name: str, *, pdf: bool) -> str:
    words = text(name.replace("_", " "))
    return (f'<figure><a href="{link}.png"><img src="{link}.png" alt="{words}" loading="lazy"></a>'
            f"<figcaption>{words}" + (f' · <a href="{link}.pdf">pdf</a>' if pdf else "") + "</figcaption></figure>")


def text(value: object) -> str:
    return html.escape(str(value))


def address(name: str) -> str:
    """A file's name in a link."""
    return quote(name, safe="")


def of_a_run(study: str, stamp: dict) -> str:
    here = address(study)
    data = " · ".join(f'<a href="{here}/{address(name)}">{text(name)}</a>'
                      for name in stamp["files"] if name.endswith(".parquet"))
    return (f'Executed notebook: <a href="{here}/{here}.html">page</a>, <a href="{here}/{here}.ipynb">ipynb</a>. '
            f"Data: {data}.")


def pictures(stamp: dict) -> list[str]:
    return [name.removesuffix(".png") for name in stamp["files"] if name.endswith(".png")]


def question(notebook: Path) -> tuple[str, list[str]]:
    """Title and paragraphs of the study's first cell."""
    lines = nbformat.reads(read_whole(notebook).decode(), as_version=4)["cells"][0]["source"].split("\n\n")
    return lines[0].lstrip("# "), [line.replace("\n", " ") for line in lines[1:]]
