"""The net of the paper's figures 2 to 4: the best 50-layer highway net of the authors' search, trained on MNIST."""

from flowstudy.sweep import Cell, grid

# From the authors' search tables, of which a public copy exists; the paper prints the gate bias alone.  That weights
# were uniform, of variance 1 / width, is inferred from how the authors' framework draws those of tanh nets.
SETTINGS = {"net": "highway", "activation": "tanh", "init": "lecun_uniform", "gate_bias": -2.0, "batch_size": 20,
            "learning_rate": 0.46954, "momentum": 0.54141, "decay": 0.98682}


def best_net(dataset: str = "mnist", epochs: int = 400, depth: int = 50, width: int = 50, *,
             train_samples: int | None = None, seed: int = 0) -> list[Cell]:
    """The net of the paper's figures 2, 3 and 4, each of which shows another measurement of it.

    Returns:
        A plan of one cell; by default the setting of the authors' tables.

    Source: Srivastava, Greff & Schmidhuber 2015, section 4.
    """
    return grid(**SETTINGS, dataset=dataset, epochs=epochs, depth=depth, width=width, train_samples=train_samples,
                seed=seed)
