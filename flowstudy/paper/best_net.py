"""The net of the paper's figures 2 to 4: the best 50-layer highway net of the authors' search, trained on MNIST.

The paper prints its gate bias alone; the rest is from the authors' search tables (see `best_settings`).
"""

from flowstudy.sweep import Cell, grid

from .best_settings import setting_of

SETTINGS = setting_of("highway", 50)


def best_net(dataset: str = "mnist", epochs: int = 400, depth: int = 50, width: int = 50, *,
             train_samples: int | None = None, seed: int = 0) -> list[Cell]:
    """A plan of one cell, of which figures 2, 3 and 4 each show another measurement; by default the paper's own.

    Source: Srivastava, Greff & Schmidhuber 2015, section 4.

    Returns:
        The cell, in a list, for `run`.
    """
    return grid(**SETTINGS, dataset=dataset, epochs=epochs, depth=depth, width=width, train_samples=train_samples,
                seed=seed)
