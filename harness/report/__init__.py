"""The report: one self-contained HTML page of all tables and figures of an output directory."""

from .page import write_report

__all__ = ["write_report"]
