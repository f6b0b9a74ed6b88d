"""The report: one HTML file that needs no network, from what an evaluation found."""

from llamalab.arena.report.html import write_report

__all__ = ["write_report"]
