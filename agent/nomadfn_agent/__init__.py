"""The agent: what runs inside a container. It imports nothing of nomadfn until a user's function does."""
