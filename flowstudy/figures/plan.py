"""The list of studies, and the parameters of each in a profile, checked before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import papermill
import yaml

from flowstudy.arguments import in_short
from flowstudy.refusal import RefusalError, did_you_mean, printable

HOUSE = Path(__file__).resolve().parents[1]
ORDER = ("loss_vs_depth", "depth_vs_gradient", "jacobian_spectra")  # of the gallery; others follow by name


@dataclass(frozen=True)
class Studies:
    """The notebooks of a folder, and the profiles.yaml beside them."""

    folder: Path

    def notebook(self, study: str) -> Path:
        return self.folder / f"{study}.ipynb"

    def parameters(self, call: str, profile: str) -> dict[str, dict]:
        """Parameters of each study in a profile, in the gallery's order."""
        profiles = self.profiles(call)
        if profile not in profiles:
            raise RefusalError(f"{call}: `--profile` must be one of {', '.join(profiles)}, got {profile!r}."
                               + did_you_mean(profile, profiles))
        plan = {study: parameters or {} for study, parameters in profiles[profile].items()}
        for study, parameters in plan.items():
            if not self.notebook(study).exists():
                raise RefusalError(f"{call}: profiles.yaml, {profile}: there is no study {study!r}: "
                                   f"{self.notebook(study)} does not exist.")
            self.check_parameters(f"{call}: profiles.yaml, {profile}, {study}", study, parameters)
        return {study: plan[study] for study in gallery_order(plan)}

    def profiles(self, call: str) -> dict[str, dict]:
        """The profiles by name, as profiles.yaml has them."""
        try:
            found = yaml.safe_load((self.folder / "profiles.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            found = " ".join(str(error).split())
        if not isinstance(found, dict) or not all(isinstance(profile, dict) for profile in found.values()):
            raise RefusalError(f"{call}: `--studies` must be a folder of notebooks with a profiles.yaml, a mapping of "
                               f"profiles to studies, got {printable(self.folder)}: {in_short(found)}.")
        return found

    def check_parameters(self, where: str, study: str, parameters: Iterable[str]) -> None:
        """papermill itself only warns of a parameter that the notebook does not have, and runs without it."""
        known = papermill.inspect_notebook(str(self.notebook(study)))
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise RefusalError(f"{where}: unknown parameter {', '.join(unknown)}; the notebook has "
                               f"{', '.join(known)}." + did_you_mean(unknown[0], known))


def own_studies() -> Studies:
    """flowstudy's own: inside an installed package, beside the package in a clone."""
    inside = HOUSE / "studies"
    return Studies(inside if inside.is_dir() else HOUSE.parent / "studies")


def check_study(call: str, argument: str, study: str, known: Iterable[str]) -> None:
    known = list(known)
    if study not in known:
        raise RefusalError(f"{call}: {argument} must be one of {', '.join(known)}, got {study!r}."
                           + did_you_mean(study, known))


def gallery_order(studies: Iterable[str]) -> list[str]:
    found = set(studies)
    return [study for study in ORDER if study in found] + sorted(found - set(ORDER))
