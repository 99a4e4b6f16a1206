"""REPLICATION.md: every figure and table of the paper, ours beside theirs, and what has not been run.

A study whose folder holds `replication.parquet` (columns item, quantity, paper, ours, note) leaves a record of each
profile that it was run in, as replication/<profile>/<study>.json.  Records are kept in git: a run at the paper's scale
takes a GPU and days, and a quick run on another machine must not lose it.
"""

import itertools
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import yaml

from flowstudy.sweep.store.store import Store
from flowstudy.whole_file import write_whole

from .gallery import words_of

PARTS = {  # of the report, the nearest to the paper first: title, profiles
    "At the paper's scale": ("paper",),
    "Near the paper's scale: its data, fewer runs or epochs": ("gpu10", "gpu", "laptop"),
    "Not near it: scikit-learn's digits": ("quick",),
}
PROFILES = tuple(profile for profiles in PARTS.values() for profile in profiles)
ABOUT = {
    "paper": "the paper's own setting.",
    "gpu10": "figure 1's groups on all of MNIST, as many epochs of each as ten minutes of one GPU allow "
             "(`python -m benchmarks.gpu`).",
    "gpu": "figure 1's 800 runs on all of MNIST, 4 epochs: six minutes of one H100.",
    "laptop": "real data, fewer runs and epochs: what two cores do in an hour or two, and table 1's net of 16 channels "
              "by the paper's whole recipe in ten.",
    "quick": "1,797 images of 8 x 8 instead of the paper's data, minutes on two cores: whether the studies run and "
             "which way things go. No number of the paper's stands beside these.",
}
ARCHITECTURES = ("x86_64", "AMD64", "arm64", "aarch64")
ITEMS = {  # of the paper: the study that has it, and where it deviates
    "figure 1": ("loss_vs_depth", "Optimisation of plain and highway nets by depth",
                 "The paper's figure prints no numbers: the column is from the authors' search tables, of which a "
                 "public copy exists, and so are the ranges. Plain nets are 71 wide (the text; the tables say 50). "
                 "Classical momentum in the authors' convention. A setting's weight seed is its number."),
    "figure 1, best settings": (
        "best_settings", "Nets by the best setting of each depth in the authors' search",
        "Learning rate, momentum, decay, gate bias and activation are those of the best run in the authors' tables; "
        "the seeds and the order of samples are ours."),
    "figure 2": ("gate_routing", "Gate biases, activity and block outputs of the best 50-layer net",
                 "The net has the settings of the best run in the authors' tables, not of a search of our own; the "
                 "paper prints its b_T = -2 alone. No CIFAR-100 net: its settings are not published."),
    "figure 3": ("gate_routing", "Class-mean less overall-mean gate activity", "Digits 0 and 7, as in the paper."),
    "figure 4": ("lesions", "Training error with each layer's gates closed", "Share of samples misclassified."),
    "table 1": ("mnist_conv", "MNIST, convolutional highway nets", ""),
    "table 2": ("cifar_conv", "CIFAR-10: highway nets A, B, C beside FitNets",
                "The widths of A, B, C, their read-outs and the constants of the contrast normalisation are not "
                "published: see flowstudy.fitnet."),
    "table 3": ("cifar_conv", "CIFAR-10 and CIFAR-100 with global average pooling", "As for table 2."),
}

HOURS = {  # that the paper profile would take, of what has no record of it; by the times of parts that were run
    "figure 1": "1.2 hours of one H100 by its measured steps, about 130 of two cores "
                "(`benchmarks/results/four_launches.md` and `training.md`)",
    "figure 1, best settings": "7.4 hours of one core, four times what 100 epochs took",
    "figure 2": "0.8 hours of two cores", "figure 3": "as figure 2, whose net it is of",
    "figure 4": "as figure 2, whose net it is of",
    "table 1": "2.4 to 10 hours of one core for a run of mnist_16 (29 and 75 to 130 s an epoch on two machines), ten "
               "times that for its five seeds and their plain twins, 3 minutes of one H100 for a run by its measured "
               "steps (`benchmarks/results/gpu.md`); mnist_32 was not timed",
    "table 2": "11 hours of one core for a run of net A; B and C were not timed",
    "table 3": "not timed",
}


def keep_record(root: Path, stamp: dict, folder: Path, computed: bool = True) -> None:
    """Write the record of a study that was just run: the paper's numbers, ours, and where ours were computed.

    Args:
        computed: whether the run computed results.  If it found all of them in the store, it cannot say when, where and
            how fast they were computed, and an earlier record of the same parameters keeps its entries about that.
    """
    path = folder / "replication.parquet"
    if stamp["profile"] not in PROFILES or not path.exists():
        return
    rows = pd.read_parquet(path)
    about = {name: stamp[name] for name in ("study", "profile", "seconds", "finished", "device", "versions")}
    about["parameters"] = {k: v for k, v in stamp["parameters"].items() if k not in ("results", "figures", "device")}
    target = root / "replication" / stamp["profile"] / f"{stamp['study']}.json"
    if not computed and target.exists():
        earlier = json.loads(target.read_text())
        if earlier["parameters"] == about["parameters"]:
            about |= {name: earlier[name] for name in ("seconds", "finished", "device", "versions")}
    about |= computed_where(stamp, folder, computed)
    write_record(root, about, rows)


def write_record(root: Path, about: dict, rows: pd.DataFrame) -> None:
    """Keep what a study found.

    Args:
        about: its `study`, `profile`, `parameters`, `seconds`, `finished`, `device` and `versions`.
        rows: columns item, quantity, paper, ours, note.
    """
    target = root / "replication" / about["profile"] / f"{about['study']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    record = about | {"rows": json.loads(rows.to_json(orient="records"))}
    write_whole(target, (json.dumps(record, indent=1) + "\n").encode())


def computed_where(stamp: dict, folder: Path, computed: bool) -> dict:
    """Device, seconds and date of the results, as the store has them for the cells of the study's frames.

    Measurements of one training are in a file each, all with the time of that training: it is counted once.  Studies
    without cells (convolutional nets), or with cells that the store has no times for, are described by their own stamp.
    """
    store = Store(stamp["parameters"].get("results", "results"))
    runs: dict[tuple, dict] = {}
    tables = {path.parent.name: set(pq.read_schema(path).names) for path in store.root.glob("*-*/*.parquet")}
    for frame in (pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))):
        cells = set(frame.get("cell", ()))
        for table in [table for table, columns in tables.items() if columns <= set(frame)]:
            for footer in store.footers(table):
                if not cells.isdisjoint(footer["cells"]):
                    made, key = footer["provenance"], (*footer["cells"], footer["provenance"]["worker"])
                    runs[key] = max(made, runs.get(key, made), key=lambda one: one["seconds"])
    if not runs:
        return {}
    here = stamp["device"] if computed else None  # the store names a CPU by its architecture alone
    names = {(here or f"CPU ({made['device']})") if made["device"] in ARCHITECTURES else made["device"]
             for made in runs.values()}
    last = max(datetime.fromisoformat(made["finished"]) for made in runs.values())
    return {"device": ", ".join(sorted(names)), "seconds": round(sum(made["seconds"] for made in runs.values()), 1),
            "finished": f"{last:%Y-%m-%d %H:%M} UTC"}


def write_report(root: Path) -> None:
    """Write REPLICATION.md from all records."""
    records = {(path.parent.name, path.stem): json.loads(path.read_text())
               for path in sorted((root / "replication").glob("*/*.json"))}
    lines = ["# The paper, figure by figure and table by table", "",
             "*Training Very Deep Networks* (Srivastava, Greff, Schmidhuber, NIPS 2015, arXiv:1507.06228). Written by "
             "`make records` from the records in [replication/](replication); not edited by hand.", ""]
    for part, profiles in PARTS.items():
        lines += [f"## {part}", "", *(f"- Profile **{name}**: {ABOUT[name]}" for name in profiles), ""]
        for profile, item in itertools.product(profiles, ITEMS):
            lines += item_section(root, profile, item, records)
        if part == next(iter(PARTS)):
            lines += not_run(records)
    write_whole(root / "REPLICATION.md", ("\n".join(lines).rstrip() + "\n").encode())


def not_run(records: dict) -> list[str]:
    missing = [(item, study) for item, (study, *_) in ITEMS.items() if ("paper", study) not in records]
    if not missing:
        return []
    return ["Not run at the paper's scale, and how long it would take by the parts that were run. "
            "`make records ONLY=<study> PROFILE=paper DEVICE=cuda` would run it.", "",
            *(f"- {item} (`{study}`): {HOURS[item]}." for item, study in missing), ""]


def item_section(root: Path, profile: str, item: str, records: dict) -> Iterable[str]:
    study, title, deviation = ITEMS[item]
    record = records.get((profile, study), {"rows": []})
    rows = [row for row in record["rows"] if row["item"] == item]
    if not rows:
        return []
    digits = profile == "quick"  # its numbers stand by themselves
    settings = ", ".join(f"{name} {value}" for name, value in record["parameters"].items())
    head = ["| | ours | ours had | |", "|---|---|---|---|"] if digits else [
        "| | the paper | ours | ours had | what the difference means |", "|---|---|---|---|---|"]
    had = effort(record)
    judged = digits and item.startswith("figure")  # notes there are verdicts on what the paper says of other data
    table = [f"| {row['quantity']} | {'' if digits else shown(row['paper']) + ' | '}{shown(row['ours'])} | {had} | "
             f"{'' if judged else row['note']} |" for row in rows]
    pictures = [f"![{words_of(path)[0]}]({path.relative_to(root).as_posix()})"
                for path in sorted((root / "replication" / profile).glob(f"{study}*.svg"))]
    return [f"### {item.capitalize()}, {profile}: {title}", "", f"Study: `{study}`. {deviation}".strip(), "", *head,
            *table, "", *pictures, *[""] * bool(pictures),
            f"Run {record['finished']}, torch {record['versions']['torch']}, with {settings}.", ""]


def effort(record: dict) -> str:
    """Seeds, epochs, seconds, machine."""
    known = {name: yaml.safe_load(str(value)) for name, value in record["parameters"].items()  # defaults come as text
             if name in ("runs", "seeds", "epochs", "train_samples")}
    seeds = known.get("seeds", 1)
    nets = f"{known['runs']} settings" if "runs" in known else f"{seeds} seed{'s' * (seeds != 1)}"
    images = known.get("train_samples")
    data = f"{images:,} images, " if isinstance(images, int) else ""
    return f"{nets}, {known.get('epochs', '-')} epochs, {data}{record['seconds']:.0f} s, {record['device']}"


def shown(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
