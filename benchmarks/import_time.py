"""The cost of `import flowstudy` beside `import torch`: processor seconds of five new processes of each, alternating.

    python -m benchmarks.import_time

The first use of a name imports its room, and torch with it: those lines say what a program pays in all.
"""

import resource
import statistics
import subprocess
import sys

RUNS = 5
YARDSTICK = "import torch"
PROGRAMS = (
    "import flowstudy",
    "import flowstudy as fs; fs.PlainNet",
    "import flowstudy as fs; fs.gradient_flow",
    "import flowstudy as fs; fs.run",
)


def processor_seconds(program: str) -> float:
    """User and system time of a Python process that runs the program, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    seconds = {program: [] for program in (YARDSTICK, *PROGRAMS)}
    for program in seconds:
        processor_seconds(program)  # fills the disk's cache, and writes the byte code
    for _ in range(RUNS):
        for program, taken in seconds.items():
            taken.append(processor_seconds(program))
    whole = statistics.median(seconds[YARDSTICK])
    for program, taken in seconds.items():
        shown = " ".join(f"{value:.2f}" for value in taken)
        middle = statistics.median(taken)
        print(f"{program:45} {middle:5.2f} s ({shown}), {middle / whole:.2f} x torch")


if __name__ == "__main__":
    main()
