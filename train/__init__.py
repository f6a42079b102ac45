"""HOW: stages over TRL, adapters, ledger, linter. The only place that imports trl."""
