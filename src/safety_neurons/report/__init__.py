"""The page a run ends with: one HTML file that needs nothing but itself; and its numbers in other forms."""

from safety_neurons.report.exports import write_figures, write_markdown
from safety_neurons.report.render import write_comparison, write_report

__all__ = ["write_comparison", "write_figures", "write_markdown", "write_report"]
