"""The studies stay where their readers look for them, in studies/, and travel inside the wheel as flowstudy/studies/.

All else is in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStudies(build_py):
    """An editable installation copies nothing: flowstudy then finds studies/ beside itself."""

    def run(self):
        super().run()
        for source, target in self.studies().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target, preserve_mode=False)

    def studies(self) -> dict[str, str]:
        """Source to target."""
        files = [*Path("studies").glob("*.ipynb"), Path("studies/profiles.yaml")]
        inside = Path(self.build_lib, "flowstudy", "studies")
        return {} if self.editable_mode else {str(path): str(inside / path.name) for path in sorted(files)}

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *self.studies().values()]


setup(cmdclass={"build_py": BuildWithStudies})
