"""Commands that are killed at random moments and started again, and what must then be true of their files."""
