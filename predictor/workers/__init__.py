"""The front's side of the worker processes: start, watch, talk to, restart. No torch in here."""
