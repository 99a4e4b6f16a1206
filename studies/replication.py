"""REPLICATION.md: every figure and table of the paper, ours beside theirs, and what has not been run.

A study whose folder holds `replication.parquet` (columns item, quantity, paper, ours, note) leaves a record of each
profile that it was run in, as replication/<profile>/<study>.json.  Records are kept in git: a run at the paper's scale
takes a GPU and days, and a quick run on another machine must not lose it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from flowstudy.plots import write_whole

PROFILES = ("paper", "laptop", "quick")  # the nearest to the paper first
ABOUT = {
    "paper": "the paper's own setting",
    "laptop": "real data, fewer runs and epochs: what two cores do in an hour",
    "quick": "scikit-learn's digits, minutes on two cores: trends, not values",
}
ITEMS = {  # of the paper: the study that has it, and where it deviates
    "figure 1": ("loss_vs_depth", "Optimisation of plain and highway nets by depth",
                 "Plain nets are 71 wide (the text; the authors' table says 50). Classical momentum in the authors' "
                 "convention. A setting's weight seed is its number."),
    "figure 2": ("gate_routing", "Gate biases, activity and block outputs of the best 50-layer net",
                 "The paper's best setting instead of the best of our own search. No CIFAR-100 net: its settings are "
                 "not published."),
    "figure 3": ("gate_routing", "Class-mean less overall-mean gate activity", "Digits 0 and 7, as in the paper."),
    "figure 4": ("lesions", "Training error with each layer's gates closed", "Share of samples misclassified."),
    "table 1": ("mnist_conv", "MNIST, convolutional highway nets", ""),
    "table 2": ("cifar_conv", "CIFAR-10: highway nets A, B, C beside FitNets",
                "The widths of A, B, C, their read-outs and the constants of the contrast normalisation are not "
                "published: see flowstudy.fitnet."),
    "table 3": ("cifar_conv", "CIFAR-10 and CIFAR-100 with global average pooling", "As for table 2."),
}


def keep_record(root: Path, stamp: dict, folder: Path, computed: bool = True) -> None:
    """What a study that was just run says of the paper's numbers, with where ours come from.

    A run that found all its results in the store says nothing of when, where and how fast they were `computed`: what
    an earlier record of the same parameters says of that stays.
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
    record = about | {"rows": json.loads(rows.to_json(orient="records"))}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, (json.dumps(record, indent=1) + "\n").encode())


def write_report(root: Path) -> None:
    """Write REPLICATION.md from all records."""
    records = {(path.parent.name, path.stem): json.loads(path.read_text())
               for path in sorted((root / "replication").glob("*/*.json"))}
    lines = ["# The paper, figure by figure and table by table", "",
             "*Training Very Deep Networks* (Srivastava, Greff, Schmidhuber, NIPS 2015, arXiv:1507.06228). Written by "
             "`studies/regenerate.py` from the records in [replication/](replication); not edited by hand.", "",
             "Profiles: " + "; ".join(f"**{name}**, {words}" for name, words in ABOUT.items()) + ".", ""]
    for item, (study, title, deviation) in ITEMS.items():
        lines += [f"## {item.capitalize()}: {title}", "", f"Study: `{study}`. {deviation}".strip(), ""]
        found = [(profile, records[profile, study]) for profile in PROFILES if (profile, study) in records]
        if not any(profile == "paper" for profile, _ in found):
            lines += ["**Not run at the paper's scale.** "
                      f"`make figures ONLY={study} PROFILE=paper DEVICE=cuda` would.", ""]
        for profile, record in found:
            lines += section(profile, record, item)
    write_whole(root / "REPLICATION.md", ("\n".join(lines).rstrip() + "\n").encode())


def section(profile: str, record: dict, item: str) -> Iterable[str]:
    rows = [row for row in record["rows"] if row["item"] == item]
    if not rows:
        return []
    settings = ", ".join(f"{name} {value}" for name, value in record["parameters"].items())
    table = [f"| {row['quantity']} | {shown(row['paper'])} | {shown(row['ours'])} | {difference(row)} | {row['note']} |"
             for row in rows]
    source = (f"{record['device']}, {record['seconds']:.0f} s, {record['finished']}, torch "
              f"{record['versions']['torch']}. {settings}.")
    return [f"### Profile {profile}", "", source, "", "| | paper | ours | difference | |", "|---|---|---|---|---|",
            *table, ""]


def shown(value: object) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def difference(row: dict) -> str:
    paper, ours = row["paper"], row["ours"]
    if not all(isinstance(value, int | float) for value in (paper, ours)):
        return ""
    return f"{ours - paper:+.3g}"
