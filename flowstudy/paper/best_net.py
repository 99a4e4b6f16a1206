"""The net of the paper's figures 2 to 4: the best 50-layer highway net of the authors' search, trained on MNIST.

The paper prints its gate bias alone; the rest is from the authors' search tables (see `best_settings`).
"""

from flowstudy.sweep import Cell, grid

from .best_settings import setting_of

SETTINGS = setting_of("highway", 50)


def best_net(dataset: str = "mnist", epochs: int = 400, depth: int = 50, width: int = 50, *,
             train_samples: int | None = None, seed: int = 0) -> list[Cell]:
    """The net of the paper's figures 2, 3 and 4, each of which shows another measurement of it.

    Returns:
        A plan of one cell, for `run`; by default the setting of the authors' tables.

    Source: Srivastava, Greff & Schmidhuber 2015, section 4.
    """
    return grid(**SETTINGS, dataset=dataset, epochs=epochs, depth=depth, width=width, train_samples=train_samples,
                seed=seed)
