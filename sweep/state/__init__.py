"""What a sweep has found so far, built from the events of its ledger."""
