"""Examine a trained run, and name the mistakes that were made."""

from Libraries.Doctor.Case import CannotLook, Case, Finding
from Libraries.Doctor.Doctor import RULES, Diagnosis, doctor, examine, name_of, rules_for
