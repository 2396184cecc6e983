"""The page a run ends with: one HTML file that needs nothing but itself."""

from safety_neurons.report.render import write_report

__all__ = ["write_report"]
