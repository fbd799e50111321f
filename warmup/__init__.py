"""The controller of a namespace's pools: knows which models are declared, tells the pods, keeps their status."""
