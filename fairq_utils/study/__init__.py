"""A study: params, plan, runs and the ledger, on this machine or on a cluster."""
