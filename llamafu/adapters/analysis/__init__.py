"""What adapters look like beside each other: norms, similarities, plots."""
