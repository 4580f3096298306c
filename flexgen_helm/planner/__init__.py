"""What a policy takes and what it gives, worked out before anything runs. Never imports torch."""
