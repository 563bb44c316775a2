"""What the tuner runs on every rank: calibrates, profiles the layers, runs schedules."""
