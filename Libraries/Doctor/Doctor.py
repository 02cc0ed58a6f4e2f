"""Examine a run: every rule looks at it and names its mistake, if it was made, with evidence and advice.

    print(doctor(Path("Models/diffusion/00000-CPU")))

The mistakes are those of the journal that this repository grew from, and those that users of other systems
report most; each rule names its source.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from Libraries.Doctor.AutoencoderRules import AUTOENCODER_RULES
from Libraries.Doctor.Case import UNREADABLE, Case, Finding
from Libraries.Doctor.CurveRules import CURVE_RULES, loss_stalls_at_a_constant
from Libraries.Doctor.DataRules import DATA_RULES, data_in_zero_to_one
from Libraries.Doctor.SampleRules import SAMPLE_RULES
from Libraries.Doctor.SettingRules import SETTING_RULES
from Libraries.Doctor.WeightRules import WEIGHT_RULES, fp16_overflow, sigmoid_on_the_output

Rule = Callable[[Case], Finding | None]

RULES: dict[str, tuple[Rule, ...]] = {
    "diffusion": (
        *DATA_RULES,
        data_in_zero_to_one,
        *SETTING_RULES,
        loss_stalls_at_a_constant,
        *CURVE_RULES,
        sigmoid_on_the_output,
        *WEIGHT_RULES,
        *SAMPLE_RULES,
    ),
    "vae": (*DATA_RULES, *CURVE_RULES, *WEIGHT_RULES, *AUTOENCODER_RULES),
    "upsampler": (*DATA_RULES, *CURVE_RULES, *WEIGHT_RULES),
    "phase": (*DATA_RULES, *CURVE_RULES, fp16_overflow),
}
"""The rules for each kind of run. A diffusion of latents is examined by those for the autoencoder too."""


@dataclass(frozen=True)
class Diagnosis:
    """What all rules found; `print` shows it."""

    run: str
    findings: list[Finding]
    sound: list[str]  # the rules that found nothing
    unseen: dict[str, str]  # the rules that could not look, and why

    def __str__(self) -> str:
        count, verdict = len(self.findings), "healthy"
        if count:
            verdict = f"{count} mistake{'s' * (count > 1)} found"
        elif self.unseen:
            verdict = "no mistake found, as far as could be seen"
        lines = [f"{self.run}: {verdict}; {len(self.sound)} rules found nothing"]
        lines += [f"  - {finding}" for finding in self.findings]
        lines += [f"  could not look for {rule}: {why}" for rule, why in self.unseen.items()]
        return "\n".join([*lines, f"  found nothing: {', '.join(self.sound)}"])


def doctor(run_dir: Path, device: torch.device | None = None) -> Diagnosis:
    """Examine a run of any kind with its dataset, weights and samples; about half a minute for the demo.

    Args:
        run_dir: `Models/<kind>/<run>`; nothing in it is changed.
        device: where networks run; None picks the best one.

    Raises:
        CheckpointError: the folder is not a run, or is from an earlier version.
    """
    case = Case(run_dir, device)
    return examine(case, rules_for(case))


def examine(case: Case, rules: tuple[Rule, ...]) -> Diagnosis:
    """Return what these rules find in a run."""
    diagnosis = Diagnosis(case.run.name, [], [], {})
    for rule in rules:
        name = name_of(rule)
        try:
            finding = rule(case)
        except UNREADABLE as error:
            diagnosis.unseen[name] = str(error)
            continue
        if finding is None:
            diagnosis.sound.append(name)
        else:
            diagnosis.findings.append(finding.named(name))
    return diagnosis


def rules_for(case: Case) -> tuple[Rule, ...]:
    """Return the rules that concern a run."""
    latent = case.kind == "diffusion" and case.settings.space == "latent"
    return (*RULES[case.kind], *(AUTOENCODER_RULES if latent else ()))


def name_of(rule: Rule) -> str:
    """Return the name of a rule in words."""
    return rule.__name__.replace("_", " ")
