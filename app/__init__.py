"""The four doors and what stands behind them: settings, wiring, API, CLI, answering."""

__version__ = "0.1.0"
