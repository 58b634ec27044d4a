"""The probe: what the machines at hand can compute and how fast their links are."""

from shoestring.jobs.probe.findings import Facts, Findings, to_cluster
from shoestring.jobs.probe.job import ProbeOptions, probe
from shoestring.jobs.probe.survey import facts_here, survey
from shoestring.jobs.probe.wire import Wire

__all__ = ["Facts", "Findings", "ProbeOptions", "Wire", "facts_here", "probe", "survey", "to_cluster"]
