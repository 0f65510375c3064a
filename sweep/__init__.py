"""Many trials: plan, search, schedule, record and show them."""
