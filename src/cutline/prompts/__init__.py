"""What is asked of a model, built in one place; and reading what it answers."""
