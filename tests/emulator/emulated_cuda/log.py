"""What has happened on the emulated devices."""

from collections import Counter


class Log:
    """Counts since `clear`.

    Attributes:
        kernels: operations that computed something on a device, by name; a replay of a graph is one.
        waits: what made the host wait for a device.
        transfers: copies between host and device, "H2D" and "D2H", and between devices, "D2D".
    """

    def __init__(self):
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()

    def clear(self) -> None:
        for counts in (self.kernels, self.waits, self.transfers):
            counts.clear()


LOG = Log()
