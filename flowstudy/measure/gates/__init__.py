"""Gates: how far each is open, for which inputs."""
