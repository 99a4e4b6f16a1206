"""The test accuracies of the paper's convolutional nets, and a table of ours beside them."""

import pandas as pd

from flowstudy.arguments import check_frame, takes

# Test accuracy of highway nets [%], mean over 5 runs where the paper gives one: Srivastava et al. 2015, tables 1 to 3.
PUBLISHED = {
    ("table 1", "mnist", "mnist_16"): 99.40, ("table 1", "mnist", "mnist_32"): 99.54,
    ("table 2", "cifar10", "A"): 89.18, ("table 2", "cifar10", "B"): 92.28, ("table 2", "cifar10", "C"): 91.20,
    ("table 3", "cifar10", "cifar_10"): 92.31, ("table 3", "cifar100", "cifar_100"): 67.61,
}
NOT_IN_THE_PAPER = "a thinner net than the paper's"
ONE_RUN = ("A", "C")  # nets for which the paper gives the accuracy of a single run
EPOCHS = {"mnist": 300, "cifar10": 400, "cifar100": 400}  # epochs in the authors' solver files
MNIST_RATE, CIFAR_RATE = 0.01, 0.025  # the authors' learning rates


@takes(frame=check_frame)
def conv_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy after the last epoch, mean over seeds, beside the paper's.

    Returns:
        Rows of REPLICATION.md: `item`, `quantity`, `paper` and `ours` [%], `note`.  `paper` is nan for plain and for
        thinner nets, which the paper did not train, and for other data sets or learning rates.
    """
    kinds = ["dataset", "net", "block", "learning_rate", "parameters"]
    runs = frame.groupby([*kinds, "seed"], sort=False).last().reset_index()
    items = {net: item for item, _, net in PUBLISHED}
    rows = []
    for (dataset, net, block, rate, parameters), group in runs.groupby(kinds, sort=False):
        right = 100 * group["test_accuracy"]
        theirs = block == "highway" and rate == (MNIST_RATE if net.startswith("mnist") else CIFAR_RATE)
        epochs = sorted(group["epoch"].unique())
        published = PUBLISHED.get((items.get(net), dataset, net)) if theirs else None
        rows.append({
            "item": items.get(net, NOT_IN_THE_PAPER),
            "quantity": f"{net}, {block}, {parameters:,} parameters, learning rate {rate:g}: test accuracy %",
            "paper": published, "ours": right.mean(),
            "note": dataset + (f", mean of {len(group)} seeds, standard deviation {right.std():.2f}" if len(group) > 1
                               else ", one seed")
                    + f", after epoch {', '.join(map(str, epochs))}"
                    + (f"; {right.isna().sum()} diverged" if right.isna().any() else "")
                    + ("" if published is None else against(dataset, net, int(max(epochs)))),
        })
    return pd.DataFrame(rows).astype({"paper": "float64"})


def against(dataset: str, net: str, epochs: int) -> str:
    kind = "one run" if net in ONE_RUN else "mean of 5 runs"
    short = epochs < EPOCHS[dataset]
    return f"; the paper's is {kind} of {EPOCHS[dataset]} epochs" + (": ours stopped early" if short else "")
