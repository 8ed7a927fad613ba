"""Training: architectures, the one loop, and stopped trainings that go on."""
