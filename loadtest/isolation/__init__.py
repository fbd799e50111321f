"""Models that do their worst beside models that do no harm: who else notices, and for how long."""
