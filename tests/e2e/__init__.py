"""End to end on a real cluster: Knative, KServe, S3 and the image, nothing faked. ``make e2e`` runs them."""
