"""The Hearth predictor: one pod that serves many models from few devices.

Where to begin reading: ``policy/ledger.py`` decides which models are where, ``cache.py``
carries its decisions out, ``api/rest.py`` turns HTTP into leases on models.
"""
