"""DECIDES: which models are where. Pure: no await, clock, randomness, logging or torch in here."""
